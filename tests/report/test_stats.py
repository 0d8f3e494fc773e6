import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.report.stats import QUANTILES, distribution, quantiles

TOLERANCE = 1e-12  # linear interpolation, written in two ways
VALUES = st.floats(min_value=0.0, max_value=1e6, allow_subnormal=False)


@given(st.lists(VALUES, min_size=1, max_size=50))
def test_quantiles_agree_with_numpy(values):
    sample = np.array(values)
    assert quantiles(sample, QUANTILES) == pytest.approx(np.quantile(sample, QUANTILES), rel=TOLERANCE, abs=TOLERANCE)


@given(
    st.lists(st.tuples(VALUES, st.integers(0, 9)), min_size=1, max_size=30).filter(lambda rows: sum(w for _, w in rows))
)
def test_weighted_quantiles_agree_with_numpy_on_the_repeated_sample(rows):
    values, weights = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(values, weights)
    at = np.linspace(0, 1, 21)
    assert quantiles(values, at, weights) == pytest.approx(np.quantile(repeated, at), rel=TOLERANCE, abs=TOLERANCE)
    described = distribution(values, weights)
    assert described.count == len(repeated)
    assert described.mean == pytest.approx(repeated.mean(), rel=TOLERANCE)
    assert described.max == repeated.max()


@given(st.permutations(list(zip([0.1, 0.2, 0.3, 1e-9, 7e5, 0.1], [1, 2, 3, 4, 5, 6], strict=True))))
def test_the_order_of_a_sample_changes_no_bit(rows):
    values, weights = (np.array(column) for column in zip(*rows, strict=True))
    assert distribution(values, weights) == distribution(
        np.array([0.1, 0.1, 0.2, 0.3, 1e-9, 7e5]), np.array([1, 6, 2, 3, 4, 5])
    )


def test_missing_values_are_not_counted():
    described = distribution(np.array([np.nan, 2.0, np.nan, 4.0]))
    assert (described.count, described.mean, described.p50, described.max) == (2, 3.0, 3.0, 4.0)


def test_an_empty_sample_has_no_percentiles():
    described = distribution(np.array([np.nan]))
    assert described.count == 0
    assert np.isnan([described.mean, described.p50, described.p99, described.max]).all()
    assert np.isnan(quantiles(np.array([]), (0.5,))).all()
