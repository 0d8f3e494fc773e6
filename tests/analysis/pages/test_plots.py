"""Every kind of plot: it is drawn from what its room gives, says its finding, its rows and its units."""

import re
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pytest

from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.pages import plots
from nanoserve.analysis.pages.plots import DRAWINGS, drawing_of, plot_of
from nanoserve.report.theme import DAY
from tests.analysis.pages import factories
from tests.analysis.pages.factories import answers

UNDRAWN = ("anatomy.prefix",)  # the made-up service has no hashes


@pytest.fixture(scope="module")
def drawn():
    return factories.plots()


def test_every_drawing_draws_something_of_a_whole_service(drawn):
    used = {max((each for each in DRAWINGS if f"{key}.".startswith(f"{each}.")), key=len) for key in drawn}
    assert used == set(DRAWINGS) - set(UNDRAWN)


def test_a_plot_says_its_finding_and_its_rows(drawn):
    for finding in answers():
        if finding.key in drawn:
            assert drawn[finding.key].title == finding.title
            assert drawn[finding.key].note.startswith(f"{finding.rows:,} ")


def test_every_axis_that_has_marks_has_a_label_with_what_is_counted(drawn):
    for key, plot in drawn.items():
        texts = [
            element.text
            for element in ElementTree.fromstring(plot.svg).iter()
            if element.tag.endswith("text") and element.text
        ]
        words = [text for text in texts if re.search("[a-z]{3}", text)]
        assert len(words) >= 2, key


def test_colours_follow_the_page_into_the_dark(drawn):
    for plot in drawn.values():
        assert not [color for color in DAY.values() if color in plot.svg]


def test_a_plot_does_not_grow_with_the_log(drawn):
    assert max(len(plot.svg) for plot in drawn.values()) < 250_000


def test_a_finding_that_could_not_be_computed_is_not_drawn():
    assert drawing_of(not_computed("anatomy.arrivals.gaps", "Gaps", "one request")) is None


def test_a_finding_without_its_series_is_not_drawn():
    assert drawing_of(Finding(key="anatomy.arrivals.gaps", title="x", rows=1)) is None
    assert drawing_of(Finding(key="nobody.knows.this", title="x", rows=1)) is None


def test_the_longest_beginning_of_a_key_decides():
    names = ("tokens", "share_at_least", "power_law", "lognormal", "edges_tokens", "requests")
    series = {name: np.ones(1) for name in names}
    tail = Finding(key="anatomy.lengths.prompt.tail", title="x", rows=1, series=series)
    body = Finding(key="anatomy.lengths.prompt", title="x", rows=1, series=series)
    assert drawing_of(tail) is DRAWINGS["anatomy.lengths.prompt.tail"]
    assert drawing_of(body) is DRAWINGS["anatomy.lengths"]


def test_a_helper_draws_the_same(drawn):
    some = [finding for finding in answers() if finding.key.startswith(("usage", "proof"))]
    told = []
    with ThreadPoolExecutor(1) as one:  # matplotlib is not for two threads at once: the helper goes first
        submitted = plots.draw_all(some, lambda done, key: told.append((done, key)), _InTurn(one))
    assert submitted == {key: plot for key, plot in drawn.items() if key in submitted}
    assert [done for done, _ in told] == list(range(1, len(submitted) + 1))


class _InTurn:
    """An executor that has finished before it says that it was asked."""

    def __init__(self, pool: ThreadPoolExecutor):
        self._pool = pool

    def submit(self, *call):
        future = self._pool.submit(*call)
        future.result()
        return future


def test_identical_findings_give_identical_bytes(drawn):
    finding = next(each for each in answers() if each.key == "anatomy.arrivals.gaps")
    drawing = drawing_of(finding)
    assert drawing is not None and plot_of(finding, drawing) == drawn[finding.key]
