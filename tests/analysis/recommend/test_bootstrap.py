"""Intervals: right where the answer is known, wider where neighbours are alike, nothing where nothing differs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.analysis.recommend.bootstrap import mean_difference, ratio_of_sums


def test_the_interval_of_independent_blocks_is_that_of_the_normal_law():
    difference = np.random.default_rng(1).normal(1.0, 2.0, 400)
    found = mean_difference(np.zeros(400), difference, np.arange(400))
    error = difference.std() / 20
    assert found.value == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.03)
    assert found.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.03)


def test_requests_that_fare_alike_count_as_one():
    difference = np.random.default_rng(2).normal(0.0, 1.0, 40)
    alone = mean_difference(np.zeros(40), difference, np.arange(40))
    tenfold = mean_difference(np.zeros(400), difference.repeat(10), np.arange(40).repeat(10))
    assert (tenfold.low, tenfold.high) == pytest.approx((alone.low, alone.high))


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_equal_runs_do_not_differ(good):
    values = np.array(good, float)
    found = mean_difference(values, values, np.arange(len(good)) // 3)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0) and not found.decided


def test_an_interval_on_one_side_of_zero_is_a_decision():
    block = np.arange(90) // 3
    assert mean_difference(np.zeros(90), np.ones(90), block).decided
    assert not mean_difference(np.zeros(90), np.tile([1.0, -1.0, 0.0], 30), block).decided


def test_requests_that_one_run_did_not_answer_are_left_out():
    found = mean_difference(np.array([1.0, np.nan, 3.0]), np.array([2.0, 5.0, np.nan]), np.zeros(3, int))
    assert found.value == 1.0


def test_nothing_to_compare_is_not_a_number():
    assert np.isnan(mean_difference(np.full(4, np.nan), np.ones(4), np.zeros(4, int)).value)


def test_a_ratio_of_sums_is_of_the_sums():
    found = ratio_of_sums(np.array([4.0, 4.0, 0.0]), np.array([1.0, 1.0, 0.0]), np.arange(3))
    assert found.value == 0.25 and found.low <= 0.25 <= found.high


def test_a_ratio_to_nothing_is_not_a_number():
    assert np.isnan(ratio_of_sums(np.zeros(3), np.zeros(3), np.arange(3)).value)
