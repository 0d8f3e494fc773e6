"""Tails are fitted to what they were drawn from, and the fits are as likely as scipy says."""

import numpy as np
import pytest
from scipy import stats

from nanoserve.analysis.anatomy.sketch import Counts
from nanoserve.analysis.anatomy.tails import Tail, _log_lognormal, _log_power_law, fit_tail


def drawn(values: np.ndarray) -> Tail:
    tail = fit_tail(Counts.of(np.round(values).astype(np.int64)))
    assert tail is not None
    return tail


@pytest.mark.parametrize("alpha", [2.2, 3.0])
def test_a_power_law_is_found_with_its_exponent(alpha: float):
    rng = np.random.default_rng(1)
    body, tail = rng.uniform(1, 100, 20_000), 100 * (1 - rng.uniform(size=20_000)) ** (-1 / (alpha - 1))
    found = drawn(np.concatenate([body, tail]))
    assert found.alpha == pytest.approx(alpha, rel=0.05)
    assert 80 <= found.least <= 400
    assert found.verdict != "lognormal"


def test_a_lognormal_is_not_taken_for_a_power_law():
    found = drawn(np.random.default_rng(2).lognormal(6, 1.0, 50_000))
    assert found.verdict == "lognormal"
    assert found.mu == pytest.approx(6, abs=0.5) and found.sigma == pytest.approx(1, abs=0.2)


def test_the_likelihoods_are_scipys():
    values = np.arange(100.0, 5000.0)
    power = stats.pareto(1.7, scale=99.5)
    chance = power.sf(values - 0.5) - power.sf(values + 0.5)
    assert _log_power_law(values, 2.7) == pytest.approx(np.log(chance), rel=1e-6)
    normal = stats.lognorm(1.3, scale=np.exp(5.0))
    inside = (normal.sf(values - 0.5) - normal.sf(values + 0.5)) / normal.sf(99.5)
    assert _log_lognormal(values, 5.0, 1.3) == pytest.approx(np.log(inside), rel=1e-6)


def test_the_exponent_is_the_most_likely_one():
    rng = np.random.default_rng(3)
    found = drawn(50 * (1 - rng.uniform(size=5000)) ** (-1 / 1.5))
    tail = np.sort(np.round(50 * (1 - np.random.default_rng(3).uniform(size=5000)) ** (-1 / 1.5)))
    tail = tail[tail >= found.least]
    likelihood = [_log_power_law(tail, found.alpha + shift).sum() for shift in (-0.05, 0.0, 0.05)]
    assert likelihood[1] == max(likelihood)


def test_fitted_shares_begin_at_one_and_fall():
    found = drawn(np.random.default_rng(2).lognormal(6, 1.0, 5000))
    tokens = np.geomspace(found.least, 50 * found.least, 30)
    for shares in (found.power_law_at_least(tokens), found.lognormal_at_least(tokens)):
        assert shares[0] == pytest.approx(1.0) and (np.diff(shares) < 0).all()


@pytest.mark.parametrize("values", [np.array([5, 6, 7]), np.full(1000, 8192), np.array([], int)])
def test_too_little_to_fit_is_said(values: np.ndarray):
    assert fit_tail(Counts.of(values)) is None
