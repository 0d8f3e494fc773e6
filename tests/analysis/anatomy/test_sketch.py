"""Splitting and merging equals the whole, percentiles are numpy's, and order decides nothing."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from nanoserve.analysis.anatomy.sketch import RELATIVE_ERROR, Counts, Floats, Moments, merged

AT = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0)
INTEGERS = st.lists(st.integers(0, 10**7), min_size=1, max_size=60)
NUMBERS = st.lists(st.floats(0.0, 1e6, allow_subnormal=False), min_size=1, max_size=60)
PIECES = st.integers(1, 5)


def pieces(values: np.ndarray, count: int) -> list[np.ndarray]:
    return np.array_split(values, count)


@given(INTEGERS, PIECES)
def test_counts_of_parts_are_those_of_the_whole_and_numpys(values, count):
    values = np.array(values)
    counts = merged(pieces(values, count), Counts.of)
    assert (np.repeat(counts.values, counts.times) == np.sort(values)).all()
    assert counts.quantiles(AT) == pytest.approx(np.quantile(values, AT), rel=1e-12)
    assert counts.mean == pytest.approx(values.mean(), rel=1e-12)
    assert counts.std == pytest.approx(values.std(), rel=1e-9, abs=1e-6)


@given(NUMBERS, PIECES)
def test_few_floats_are_exact(values, count):
    values = np.array(values)
    floats = merged(pieces(values, count), Floats.of)
    assert floats.exact is not None
    assert floats.quantiles(AT) == pytest.approx(np.quantile(values, AT), rel=1e-12)
    assert floats.moments.mean == pytest.approx(values.mean(), rel=1e-9)
    assert floats.moments.std == pytest.approx(values.std(), rel=1e-6, abs=1e-6)


@given(NUMBERS, PIECES)
def test_many_floats_are_within_the_stated_bound(values, count):
    values = np.array(values)
    parts = [Floats.of(part, exact_values=0) for part in pieces(values, count)]
    floats = merged(parts, lambda part: part)
    assert floats.exact is None or not len(values)
    order = np.sort(values)
    found = floats.quantiles(np.arange(len(order)) / max(len(order) - 1, 1))
    assert found == pytest.approx(order, rel=RELATIVE_ERROR * 1.01, abs=2e-9)
    assert (floats.least, floats.most) == (order[0], order[-1])


@given(NUMBERS, PIECES)
def test_buckets_do_not_depend_on_how_values_were_split(values, count):
    values = np.array(values)
    whole = Floats.of(values, exact_values=0)
    split = merged([Floats.of(part, exact_values=0) for part in pieces(values, count)], lambda part: part)
    assert split.quantiles(AT) == pytest.approx(whole.quantiles(AT), rel=1e-12)
    assert split.moments.count == whole.moments.count


@given(NUMBERS, st.randoms(use_true_random=False))
def test_the_order_of_values_changes_nothing(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    for exact_values in (0, 1000):
        one, other = (Floats.of(np.array(order), exact_values) for order in (values, shuffled))
        assert (one.quantiles(AT) == other.quantiles(AT)).all()


def test_a_share_is_exact_while_values_are_and_within_a_bucket_beyond():
    values = np.random.default_rng(0).lognormal(-4, 2, 5000)
    limits = np.array([0.0, 0.001, 0.01, 0.1, 1.0, 1e9])
    truth = (values[:, None] <= limits).mean(axis=0)
    assert (Floats.of(values).share_up_to(limits) == truth).all()
    assert Floats.of(values, exact_values=0).share_up_to(limits) == pytest.approx(truth, abs=0.001)


def test_the_top_share_is_that_of_the_values_written_out():
    values = np.random.default_rng(0).lognormal(5, 2, 10_000).astype(int)
    top = np.sort(values)[-100:].sum() / values.sum()
    assert Counts.of(values).share_held_by_top(0.01) == pytest.approx(top, rel=1e-12)


def test_moments_of_far_numbers_keep_their_digits():
    values = 1e9 + np.random.default_rng(0).normal(size=10_000)
    moments = merged(np.array_split(values, 7), Moments.of)
    assert moments.std == pytest.approx(values.std(), rel=1e-6)


def test_nothing_has_no_percentiles():
    assert np.isnan(Floats.of(np.array([])).quantiles(AT)).all()
    assert np.isnan(Counts.of(np.array([], int)).quantiles(AT)).all()
    assert np.isnan(Floats.of(np.array([np.nan])).merge(Floats.of(np.array([]))).least)
