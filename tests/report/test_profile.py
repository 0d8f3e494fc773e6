"""Where a step's time went, on the three faces of a report."""

import dataclasses
import io

import matplotlib.image
import pytest
from rich.console import Console

from nanoserve.report.html import render_html
from nanoserve.report.markdown import render_markdown
from nanoserve.report.profile import TITLE, kernel_table, profile_plot, profile_table, save_profile_plot
from nanoserve.report.terminal import print_profile
from nanoserve.roofline.profiled import KindProfile, Line, Profile
from tests.report.synthetic import synthetic_report


def line(operation: str, measured_s: float, calibrated_s: float | None, *kernels: tuple[str, float]) -> Line:
    return Line(
        operation=operation,
        measured_s=measured_s,
        calibrated_s=calibrated_s,
        sol_s=None if calibrated_s is None else calibrated_s / 2,
        bound="" if calibrated_s is None else "weights",
        kernels=kernels,
    )


LINES = (
    line("qkv", 3e-3, 2e-3, ("nvjet<128, 64>", 2.5e-3), ("k" * 200, 0.5e-3)),
    line("gap", 1e-3, None),
    line("host", 5e-4, 1e-3),
    line("sample", 5e-4, 0.0),
)
DECODE = KindProfile(kind="decode", plans=2, steps=8, lines=LINES)
PROFILE = Profile(
    first=20, end=22, device="some GPU", calibrated_by="constants", kinds=(DECODE,), remarks=("One thing to know.",)
)


def test_a_row_has_measured_share_price_limit_ratio_and_bound_and_the_last_is_the_sum():
    rows = {row[0]: row[1:] for row in profile_table(DECODE).rows}
    assert rows["queries, keys, values"] == ("3.00 ms", "60.0%", "2.00 ms", "1.00 ms", "1.50", "reading weights")
    assert rows["waits between kernels"] == ("1.00 ms", "20.0%", "in others", "in others", "–", "")
    assert rows["all"] == ("5.00 ms", "100%", "3.00 ms", "1.50 ms", "1.67", "")


def test_kernels_are_named_with_their_times_and_long_names_cut():
    ((operation, kernels),) = kernel_table(DECODE).rows
    assert operation == "queries, keys, values"
    assert kernels.startswith("nvjet<128, 64> 2.50 ms, kkk") and kernels.endswith("k… 500 µs")


def test_the_plots_title_is_the_finding():
    plot = profile_plot(DECODE)
    assert plot.title == "A decode step takes 5.00 ms and is priced at 3.00 ms; 60.0% of it is queries, keys, values"
    assert "8 steps in 2 plans" in plot.note
    for text in ("output head", "queries, keys, values", "waits between kernels", "measured", "datasheet limit"):
        assert (text in plot.svg) == (text != "output head")


def test_a_picture_of_its_own_can_be_read(tmp_path):
    save_profile_plot(str(tmp_path / "decode.png"), DECODE)
    assert matplotlib.image.imread(tmp_path / "decode.png").shape[1] > 500


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_a_report_has_the_page_only_where_something_was_profiled(render):
    data = synthetic_report(3, requests=30, rate_rps=20.0, pages=4000)
    with_profile = render(dataclasses.replace(data, profile=PROFILE))
    assert "Where a step" in with_profile and "One thing to know." in with_profile
    assert "Plans 20 to 21 of the run on some GPU: 2 decode plans (8 steps)." in with_profile.replace("\u00a0", " ")
    assert "Where a step" not in render(data)


def test_a_terminal_of_80_columns_shows_whole_rows():
    out = io.StringIO()
    print_profile(PROFILE, Console(file=out, width=80))
    text = out.getvalue()
    assert "…" not in text
    assert any(
        row.split() == ["queries,", "keys,", "values", "3.00", "ms", "60.0%", "2.00", "ms", "1.50"]
        for row in text.splitlines()
    )
    assert TITLE not in text  # the page's, not the terminal's
