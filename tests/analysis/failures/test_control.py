"""Control charts: a planted change is found and dated, and a service that does not change has none."""

import numpy as np
import polars as pl
import pytest

from nanoserve.analysis.failures.control import change_point, charts, latency_charts
from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.service import DAY_S
from tests.analysis.failures.factories import requests_of


def latencies(seed, factor_from_day_4):
    """Seven days with slow noons; from the fourth on everything takes so many times as long."""
    rng = np.random.default_rng(seed)
    time_s = np.sort(rng.uniform(0, 7 * DAY_S, 40_000))
    noon = 1 + 0.8 * np.sin(np.pi * (time_s % DAY_S) / DAY_S)
    level = np.where(time_s > 3 * DAY_S, factor_from_day_4, 1.0)
    count = len(time_s)
    return requests_of(
        time_s=time_s,
        prompt_tokens=np.full(count, 9),
        response_tokens=np.full(count, 9),
        latency_s=noon * level * rng.lognormal(0, 0.5, count),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_lasting_rise_is_found_and_dated(seed):
    values = latency_charts(Loss(latencies(seed, 1.5))).values
    assert values["change_s"] == pytest.approx(3 * DAY_S, abs=0.2 * DAY_S)
    assert values["change_factor"] == pytest.approx(1.5, rel=0.15)
    assert values["change_p_value"] < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_hours_that_are_slow_every_day_are_no_change(seed):
    finding = latency_charts(Loss(latencies(seed, 1.0)))
    assert "no lasting rise" in finding.title
    assert finding.values["shewhart_alarms"] < 0.03 * finding.values["stretches"]


def test_charts_follow_their_definitions():
    score = np.array([0.0, 4.0, 0.0, 1.0, 1.0, 1.0])
    found = charts(score)
    assert found.shewhart.tolist() == [False, True, False, False, False, False]
    assert found.ewma_level == pytest.approx([0, 0.8, 0.64, 0.712, 0.7696, 0.81568])
    assert found.cusum_level == pytest.approx([0, 3.5, 3.0, 3.5, 4.0, 4.5])
    assert found.began is None


def test_cusum_dates_a_shift_by_its_last_zero():
    score = np.concatenate([np.tile([0.3, -0.3], 20), np.full(10, 1.5)])
    assert charts(score).began == 40


def test_a_split_is_where_the_levels_part():
    place, shift, chance = change_point(np.r_[np.zeros(30), np.full(20, 2.0)], block=2)
    assert (place, shift) == (30, 2.0)
    assert chance < 0.01


def test_few_requests_have_no_chart():
    service = requests_of(time_s=[0.0], prompt_tokens=[1], response_tokens=[1], latency_s=[1.0])
    assert latency_charts(Loss(service)).missing


def test_the_order_of_rows_changes_nothing():
    service = latencies(0, 1.5)
    table = service.requests.sample(fraction=1.0, shuffle=True, seed=1).sort(pl.all())
    again = latency_charts(Loss(requests_of(**{name: table[name] for name in table.columns})))
    assert again.values == latency_charts(Loss(service)).values
