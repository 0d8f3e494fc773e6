"""Training and held-out time: every request is in one of them, by the clock alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.analysis.recommend import stretches
from nanoserve.specs.errors import TraceError

DAY_S = stretches.DAY_S


def arrivals(span_s: float, count: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).uniform(0, span_s, count))


@given(st.floats(10.0, 20 * DAY_S), st.integers(50, 400), st.integers(0, 5))
def test_every_request_is_for_training_or_held_out(span_s, count, seed):
    arrival_s = arrivals(span_s, count, seed)
    parts = stretches.split(arrival_s)
    assert (parts.training ^ parts.held_out).all()
    assert parts.training_s + parts.held_out_s == pytest.approx(arrival_s[-1])


def test_a_week_is_cut_at_midnight():
    arrival_s = arrivals(7 * DAY_S, 5000)
    parts = stretches.split(arrival_s)
    assert parts.stretch_s == DAY_S and "days" in parts.rule
    assert set((arrival_s[parts.held_out] // DAY_S).astype(int)) == {1, 3, 5}


def test_the_last_request_belongs_to_the_last_stretch():
    arrival_s = np.arange(9.0)
    assert stretches.split(arrival_s).held_out[-1]


@pytest.mark.parametrize("arrival_s", [np.array([]), np.array([0.0]), np.array([0.0, 0.0])])
def test_a_log_of_one_moment_cannot_be_divided(arrival_s):
    with pytest.raises(TraceError, match="cannot be divided"):
        stretches.split(arrival_s)


def test_a_log_whose_requests_are_all_of_one_kind_is_refused():
    with pytest.raises(TraceError, match="all 2 requests arrive in held-out time"):
        stretches.split(np.array([100.0, 100.0]))


def test_the_busiest_windows_are_whole_and_within_the_part():
    arrival_s = np.concatenate([arrivals(4 * DAY_S, 400), np.sort(2 * DAY_S + arrivals(3600.0, 500, 1))])
    arrival_s.sort()
    parts = stretches.split(arrival_s)
    chosen = stretches.busiest(arrival_s, parts.training, parts.stretch_s, 300)
    assert chosen.sum() >= 300 and not (chosen & parts.held_out).any()
    windows = set((arrival_s[chosen] // (DAY_S / 4)).astype(int))
    assert windows == {8}  # the first quarter of the third day
    assert stretches.rate_rps(arrival_s, chosen, parts.stretch_s) == pytest.approx(chosen.sum() / (DAY_S / 4))


def test_asking_for_more_than_there_is_takes_all_of_the_part():
    arrival_s = arrivals(1000.0, 200)
    parts = stretches.split(arrival_s)
    assert (stretches.busiest(arrival_s, parts.training, parts.stretch_s, 10**6) == parts.training).all()


@pytest.mark.parametrize(
    ("span_s", "length_s"), [(7 * DAY_S, 3600.0), (8 * 3600.0, 600.0), (1800.0, 60.0), (30.0, 10.0)]
)
def test_blocks_are_as_long_as_leaves_enough_of_them(span_s, length_s):
    number, found_s = stretches.blocks(arrivals(span_s, 3000))
    assert found_s == length_s
    assert set(number) == set(range(number.max() + 1))
