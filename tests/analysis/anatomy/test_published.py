"""A log beside the published numbers: met, missed, or not to be had."""

import pytest

from nanoserve.analysis.anatomy.published import STATISTICS, beside_published
from nanoserve.analysis.finding import Finding, not_computed


def numbers(**prompt: float) -> Finding:
    return Finding(key="anatomy.numbers", title="lengths", rows=10, values={"prompt_tokens": prompt})


def utilisation(share: float) -> Finding:
    return Finding(key="usage.memory.blocks", title="memory", rows=10, values={"kv_utilization": share})


def test_a_number_within_a_tenth_is_met_and_one_beyond_is_named():
    found = beside_published([numbers(p50=120, mean=600), utilisation(0.4)])
    assert found.title.startswith("2 of 3 numbers")
    assert found.because == ("prompt mean, tokens: 600, published 512",)
    assert found.values["prompt p50, tokens"] == {"published": 128, "here": 120.0, "apart": pytest.approx(-0.0625)}


@pytest.mark.parametrize(("share", "apart"), [(0.3, 0.0), (0.5, 0.0), (0.6, 0.2), (0.15, -0.5)])
def test_a_range_is_met_anywhere_in_it(share: float, apart: float):
    found = beside_published([utilisation(share)]).values["KV positions written of those held"]
    assert isinstance(found, dict) and found["apart"] == pytest.approx(apart)


def test_what_was_not_computed_is_left_out():
    missing = not_computed("usage.memory.blocks", "memory", "no telemetry")
    assert len(beside_published([numbers(p50=128), missing]).values) == 1
    assert beside_published([missing]).missing


def test_statistics_have_names_of_their_own():
    assert len({statistic.name for statistic in STATISTICS}) == len(STATISTICS)
