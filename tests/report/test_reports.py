"""The three faces of a report: HTML, Markdown and the terminal."""

import dataclasses
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import polars as pl
import pytest
from rich.console import Console

from nanoserve.report.content import ReportData, by_kind, headline
from nanoserve.report.html import render_html
from nanoserve.report.markdown import render_markdown
from nanoserve.report.metrics import summarize
from nanoserve.report.plots import latency_plots, roofline_plot, timeline_plots
from nanoserve.report.terminal import print_summary
from nanoserve.report.theme import DAY
from tests.report.synthetic import PAGE_TOKENS, synthetic_report

VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def data() -> ReportData:
    return synthetic_report(3, requests=150, rate_rps=20.0, pages=4000)


@pytest.fixture(scope="module")
def page(data) -> str:
    return render_html(data)


class Elements(HTMLParser):
    """Checks that tags nest, and collects ids, references and text."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.ids, self.references, self.text = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.references.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(page):
    elements = Elements(page)
    assert elements.open == []
    assert all(reference.startswith("#") for reference in elements.references)
    assert {reference[1:] for reference in elements.references} <= set(elements.ids)
    assert len(elements.ids) == len(set(elements.ids))
    assert "<script" not in page and "@import" not in page
    assert set(re.findall(r"https?://[^\"'\s)]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_page_shows_every_headline_number(data, page):
    text = " ".join(Elements(page).text).replace("\u00a0", " ")
    for tile in headline(data.summary):
        assert tile.value in text
    assert data.how in text
    assert "scheduled arrival" in text


def test_text_from_outside_is_never_markup(data):
    hostile = dataclasses.replace(data, title="<script>x</script>", how="a & <b>", operative="</pre><script>")
    page = render_html(hostile)
    assert "<script>" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page


def test_the_same_run_gives_the_same_bytes(data, page):
    assert render_html(data) == page


def test_plots_follow_the_page_into_the_dark(page):
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--ink)" in svg and "var(--blue)" in svg
    assert not [color for color in DAY.values() if color in svg]


def test_each_plot_is_valid_xml_states_a_finding_and_its_rows(data):
    plots = [roofline_plot(data), *latency_plots(data), *timeline_plots(data)]
    assert len(plots) == 9
    for plot in plots:
        ElementTree.fromstring(plot.svg)
        assert re.search(r"\d", plot.title)
        assert re.search(r"^[\d,]+ (plans|completed requests|gaps)", plot.note)


def test_a_long_run_makes_a_small_page(data):
    copies = [data.steps.with_columns(pl.col("step") + n, pl.col("start_s") + n * 100.0) for n in range(200)]
    long = dataclasses.replace(data, steps=pl.concat(copies))
    assert len(long.steps) > 40_000
    assert len(render_html(long)) < 600_000


def test_a_run_in_which_nothing_ran_still_has_a_report(data):
    nothing = data.requests.head(3).with_columns(
        finish_reason=pl.lit("refused"), finish_s=pl.col("arrival_s"), first_token_s=None, admitted_s=None
    )
    empty = dataclasses.replace(
        data,
        steps=data.steps.clear(),
        requests=nothing,
        summary=summarize(data.steps.clear(), nothing, page_tokens=PAGE_TOKENS),
    )
    assert Elements(render_html(empty)).open == []
    assert "| refused | 3 | 100% |" in render_markdown(empty)


def test_kinds_of_plans_add_up_to_the_run(data):
    shares = by_kind(data.steps)
    assert sum(share.plans for share in shares) == data.summary.plans
    assert sum(share.executed_tokens for share in shares) == data.summary.executed_tokens
    assert sum(share.useful_kv_tokens for share in shares) == data.summary.useful_kv_tokens


def test_markdown_tables_have_as_many_cells_in_every_row(data):
    blocks = re.findall(r"(?:^\|.*\n)+", render_markdown(data), flags=re.MULTILINE)
    assert len(blocks) == 9
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_markdown_escapes_what_would_be_markup(data):
    text = render_markdown(dataclasses.replace(data, title="t", how="a|b *c* <d>", operative="x = '```'\n"))
    assert r"a\|b \*c\* \<d>" in text
    assert "````\nx = '```'\n````\n" in text


def test_a_pipe_gets_plain_text_that_fits_80_columns(data):
    out = io.StringIO()
    print_summary(data.summary, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert "…" not in out.getvalue()
    ttft = next(line for line in lines if line.startswith("TTFT  ") and "p50" not in line)
    assert len(ttft.split()) == 14
    assert max(map(len, lines)) <= 80
