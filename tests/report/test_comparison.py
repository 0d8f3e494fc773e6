"""A run beside its simulation: errors of steps and of requests, each where it belongs."""

import numpy as np
import polars as pl
import pytest

from nanoserve.report.comparison import LATENCIES, compare, lines, save_plot
from tests.report.synthetic import synthetic_run


@pytest.fixture(scope="module")
def run() -> tuple[pl.DataFrame, pl.DataFrame]:
    return synthetic_run(0, requests=60)


def slower(requests: pl.DataFrame, factor: float) -> pl.DataFrame:
    """Every moment `factor` times as late, arrivals too."""
    times = [name for name in requests.columns if name.endswith("_s")]
    return requests.with_columns(pl.col(times) * factor)


def test_a_run_compared_with_itself_has_no_error(run):
    steps, requests = run
    found = compare(steps, steps["duration_s"].to_numpy(), requests, requests)
    assert [each.error for each in (*found.steps, found.total, *found.requests)] == pytest.approx(
        [0.0] * (len(found.steps) + 1 + 9), abs=1e-15
    )
    assert {each.kind for each in found.steps} == set(steps["kind"]) | {"all"}
    assert sum(each.plans for each in found.steps[:-1]) == found.steps[-1].plans == len(steps)


def test_an_error_of_one_kind_of_step_shows_there_and_in_all(run):
    steps, requests = run
    decode = (steps["kind"] == "decode").to_numpy()
    measured = steps["duration_s"].to_numpy()
    found = compare(steps, np.where(decode, 1.2, 1.0) * measured, requests, requests)
    by_kind = {each.kind: each for each in found.steps}
    assert by_kind["decode"].error == pytest.approx(0.2)
    assert by_kind["mixed"].error == pytest.approx(0.0, abs=1e-12)
    assert by_kind["all"].error == pytest.approx(0.2 * measured[decode].sum() / measured.sum())


def test_errors_that_cancel_in_the_sum_are_seen_in_the_plans(run):
    steps, requests = run
    measured = steps["duration_s"].to_numpy().copy()
    measured[:] = 1.0
    steps = steps.with_columns(duration_s=pl.Series(measured))
    priced = 1 + 0.1 * np.where(np.arange(len(measured)) % 2, 1, -1)
    whole = compare(steps, priced, requests, requests).steps[-1]
    assert abs(whole.error) < 0.1 / len(measured) + 1e-12 and whole.mean_abs_error == pytest.approx(0.1)


def test_a_slower_simulation_is_slower_in_total_and_in_every_latency(run):
    steps, requests = run
    found = compare(steps, steps["duration_s"].to_numpy(), requests, slower(requests, 1.25))
    assert found.total.error == pytest.approx(0.25)
    assert [each.error for each in found.requests] == pytest.approx([0.25] * 9)
    assert [each.metric for each in found.requests[::3]] == list(LATENCIES)


def test_the_page_has_a_line_for_each_and_the_plot_is_drawn(run, tmp_path):
    steps, requests = run
    priced, simulated = 1.1 * steps["duration_s"].to_numpy(), slower(requests, 1.1)
    found = compare(steps, priced, requests, simulated)
    printed = list(lines(found))
    assert len(printed) == 2 + len(found.steps) + 1 + len(found.requests)
    assert "+10.0%" in printed[-1]
    save_plot(str(tmp_path / "plot.png"), "synthetic", found, steps, priced, requests, simulated)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
