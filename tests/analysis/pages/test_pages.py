"""The three faces of a report say the same: chapters in order, every finding, what could not be computed, and rows."""

import json
import re

import numpy as np
import pytest

from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.pages.content import CHAPTERS, Page, as_json, tables_of
from nanoserve.analysis.pages.html import render_html
from nanoserve.analysis.pages.markdown import render_markdown
from tests.analysis.pages.factories import answers, plots
from tests.report.test_reports import Elements

MISSING = not_computed("anatomy.prefix", "Prefixes seen before", "no <hashes> & no *ids*")


@pytest.fixture(scope="module")
def page() -> Page:
    findings = [each for each in answers() if each.key != "anatomy.prefix"]
    return Page(
        title="a <service>",
        scope=("4,000 requests over 72.0 hours.",),
        findings=[*findings, MISSING],
        notes=("api.csv: read as api log",),
        config="Engine.max_seqs = 64  # <&>\n",
        command="analyze.py api.csv --recommend",
    )


@pytest.fixture(scope="module")
def html(page) -> str:
    return render_html(page, plots())


def plain(html: str) -> str:
    return " ".join("".join(Elements(html).text).replace("\u00a0", " ").split())


def test_the_page_is_whole_and_needs_nothing_else(html):
    elements = Elements(html)
    assert elements.open == [] and "<script" not in html
    assert all(reference.startswith("#") for reference in elements.references)
    assert {reference[1:] for reference in elements.references} <= set(elements.ids)
    assert len(elements.ids) == len(set(elements.ids))
    assert len(html) < 5_000_000


def test_every_chapter_is_in_the_contents_and_in_the_order_of_the_reasoning(page, html):
    chapters = [chapter for chapter, _ in page.chapters()]
    assert chapters == list(CHAPTERS)
    places = [html.index(f'<section id="{chapter.part}">') for chapter in chapters]
    assert places == sorted(places)
    assert all(f'<a href="#{chapter.part}">' in html for chapter in chapters)


def test_a_chapter_without_findings_is_left_out():
    chapters = Page(title="x", scope=(), findings=[Finding(key="usage.x", title="x", rows=1)]).chapters()
    assert [chapter.part for chapter, _ in chapters] == ["usage"]


def test_both_pages_state_every_finding_and_its_rows(page, html):
    text, markdown = plain(html), render_markdown(page).replace("\\", "")
    for finding in page.findings:
        if finding.missing is None:
            assert " ".join(finding.title.split()) in text and finding.title in markdown
            assert f"{finding.rows:,} row" in markdown
        else:
            assert finding.missing in text and finding.missing in markdown


def test_evidence_follows_its_finding(page, html):
    text = plain(html)
    for finding in page.findings:
        for sentence in finding.because:
            assert " ".join(sentence.split()) in text


def test_text_of_logs_cannot_become_markup(html):
    assert "a &lt;service&gt;" in html and "<service>" not in html
    assert "no &lt;hashes&gt; &amp; no *ids*" in html
    assert "# &lt;&amp;&gt;" in html


def test_the_headline_says_at_which_load(html):
    text = plain(html)
    assert "failures cut by100.0%in held-out time, at the logged load" in text
    assert "goodput+10.0%in held-out time, at 1.50 times the logged load" in text


def test_json_has_every_finding_without_arrays_and_without_nan(page):
    written = json.loads(json.dumps(as_json(page), allow_nan=False))
    assert [each["key"] for each in written["findings"]] == [finding.key for finding in page.findings]
    assert all(set(each) == {"key", "title", "rows", "values", "missing", "because"} for each in written["findings"])


def test_numbers_of_numpy_and_what_is_no_number_are_written_as_json():
    values = {
        "a_s": np.float64(1.5),
        "b": np.int64(2),
        "c": float("nan"),
        "d": [float("inf"), np.bool_(True)],
        "e": {"f": np.nan},
    }
    finding = Finding(key="usage.x", title="x", rows=1, values=values)
    written = as_json(Page(title="x", scope=(), findings=[finding]))["findings"][0]["values"]
    assert written == {"a_s": 1.5, "b": 2, "c": None, "d": [None, True], "e": {"f": None}}


def test_values_are_written_with_their_units():
    values = {"wait_s": 0.0123, "lost_share": 0.25, "rate_per_s": 3.0, "kv_bytes": 2.5e9, "named": True, "none": None}
    values["span_s"] = [0.5, 2.0]
    (table,) = tables_of(Finding(key="usage.x", title="x", rows=1, values=values))
    assert dict(table.rows) == {
        "wait": "12.3 ms", "lost share": "25.0%", "rate/s": "3", "kv": "2.50 GB", "named": "yes", "none": "–",
        "span": "500 ms to 2.00 s",
    }  # fmt: skip


def test_rows_become_a_table_and_so_do_mappings_that_are_alike():
    rows = [{"size": "8", "waste_share": 0.1}, {"size": "16", "waste_share": 0.2}]
    (table,) = tables_of(Finding(key="usage.x", title="x", rows=1, values={"single": 3, "rows": rows}))
    assert table.header == ["size", "waste share"] and table.rows[1] == ("16", "20.0%")
    alike = {"ttft_s": {"p50": 0.1, "count": 7}, "latency_s": {"p50": 2.0, "count": 9}}
    (table,) = tables_of(Finding(key="usage.x", title="x", rows=1, values=alike))
    assert table.rows == [("ttft", "100 ms", "7"), ("latency", "2.00 s", "9")]


def test_long_words_in_a_table_make_it_one_of_words():
    rows = [{"knob": "x", "because": "a sentence that is far too long for a cell of numbers"}]
    (table,) = tables_of(Finding(key="recommend.x", title="x", rows=1, values={"knobs": rows}))
    assert table.prose


def test_the_same_findings_give_the_same_markdown(page):
    assert render_markdown(page) == render_markdown(page)
    assert not re.search(r"\n{3,}", render_markdown(page))
