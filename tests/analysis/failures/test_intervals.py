"""Intervals against SciPy's own, and against lines whose slope is known."""

import numpy as np
import pytest
from scipy import stats

from nanoserve.analysis.failures.intervals import mean_of_blocks, robust_slope, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 50), (3, 50), (50, 50), (123, 4567)])
def test_wilson_is_scipys(successes, trials):
    low, high = wilson(np.array([successes]), np.array([trials]))
    wanted = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert low[0] == pytest.approx(wanted.low, abs=1e-12)
    assert high[0] == pytest.approx(wanted.high, abs=1e-12)


def test_a_line_has_its_slope_whatever_a_few_points_do():
    x = np.arange(40.0)
    y = 3 * x + np.random.default_rng(0).normal(0, 1, 40)
    y[[5, 17, 30]] = 1e6
    found = robust_slope(x, y)
    assert found.low < 3 < found.high
    assert found.value == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("points", [3, 6, 28])
def test_slopes_are_scipys(points):
    rng = np.random.default_rng(points)
    x = np.sort(rng.uniform(0, 10, points))
    y = 0.3 * x + rng.normal(0, 1, points)
    slope, _, low, high = stats.theilslopes(y, x, alpha=0.95)
    found = robust_slope(x, y)
    assert (found.value, found.low, found.high) == pytest.approx((slope, low, high))


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(1).normal(5, 2, 12)
    found = mean_of_blocks(values)
    low, high = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
