import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.report.series import gather, overlay, peak_over_time, rate_over_time

TOLERANCE = 1e-9  # sums of floats in another order, relative
POSITIVE = st.floats(min_value=1e-6, max_value=1e6)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.001, 5), st.integers(0, 1000)), min_size=1, max_size=30))
def test_stretches_hold_exactly_what_the_plans_did(plans):
    pause_s, duration_s, amount = (np.array(column, dtype=float) for column in zip(*plans, strict=True))
    start_s = np.cumsum(pause_s + duration_s) - duration_s
    edges_s = np.linspace(0, start_s[-1] + duration_s[-1], 13)
    rates = rate_over_time(start_s, duration_s, amount, edges_s)
    assert (rates * np.diff(edges_s)).sum() == pytest.approx(amount.sum(), rel=TOLERANCE, abs=TOLERANCE)
    assert (rates >= -TOLERANCE).all()


def test_a_long_plan_is_spread_and_idle_time_is_empty():
    start_s, duration_s = np.array([0.0, 6.0]), np.array([4.0, 2.0])
    rates = rate_over_time(start_s, duration_s, np.array([8, 10]), np.array([0.0, 2.0, 4.0, 6.0, 8.0]))
    assert rates.tolist() == [2.0, 2.0, 0.0, 5.0]


def test_a_short_peak_is_not_averaged_away():
    start_s, duration_s = np.array([0.0, 1.0, 1.25, 3.0]), np.array([1.0, 0.25, 1.75, 3.0])
    peaks = peak_over_time(start_s, duration_s, np.array([2.0, 9.0, 1.0, 4.0]), np.array([0.0, 2.0, 4.0, 6.0]))
    assert peaks.tolist() == [9.0, 4.0, 4.0]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(0, 50)), min_size=1, max_size=20))
def test_intervals_that_overlap_add_up(plans):
    start_s, duration_s, level = (np.array(column) for column in zip(*plans, strict=True))
    starts, durations, levels = overlay(start_s.astype(float), duration_s.astype(float), level)
    assert (np.diff(starts) > 0).all() and (starts[1:] >= (starts + durations)[:-1]).all()
    for moment in np.arange(0, 30) + 0.5:
        here = level[(start_s <= moment) & (moment < start_s + duration_s)].sum()
        assert levels[(starts <= moment) & (moment < starts + durations)].sum() == here


def test_a_run_without_plans_has_no_rate():
    assert rate_over_time(np.array([]), np.array([]), np.array([]), np.array([0.0, 1.0])).tolist() == [0.0]


@given(st.lists(st.tuples(POSITIVE, POSITIVE, POSITIVE), min_size=1, max_size=60))
def test_gathering_keeps_all_time_and_stays_among_the_points(points):
    x, y, time_s = (np.array(column) for column in zip(*points, strict=True))
    cells = gather(x, y, time_s, per_decade=4)
    assert cells.time_s.sum() == pytest.approx(time_s.sum(), rel=TOLERANCE)
    assert x.min() * (1 - TOLERANCE) <= cells.x.min() and cells.x.max() <= x.max() * (1 + TOLERANCE)
    assert y.min() * (1 - TOLERANCE) <= cells.y.min() and cells.y.max() <= y.max() * (1 + TOLERANCE)
    assert len(cells.x) <= len(x)


def test_many_points_become_few():
    rng = np.random.default_rng(0)
    x, y = 10 ** rng.uniform(0, 2, (2, 100_000))
    assert len(gather(x, y, np.ones_like(x), per_decade=12).x) <= 24 * 24
