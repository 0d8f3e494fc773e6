"""The highest rate keeps the limits, and a little more does not."""

import dataclasses

import numpy as np
import pytest

from nanoserve.analysis.published.capacity import Limits, highest_rate_rps
from nanoserve.analysis.published.scenario import replay
from nanoserve.roofline.calibration import constants_for
from tests.analysis.published import factories as make

SEED = 5
LIMITS = Limits(ttft_s=0.3, tpot_s=0.03)


def flood(count: int = 300):
    random = np.random.default_rng(SEED)
    return make.scenario(make.trace(random.integers(100, 900, count), random.integers(20, 200, count)), served=True)


def constants(scenario):
    return constants_for(scenario.cluster.chip, scenario.precision, "calibrated", "vllm")


def at_rate(scenario, rate_rps: float):
    gaps = np.random.default_rng(SEED).exponential(size=len(scenario.trace))
    arrivals = (np.cumsum(gaps) - gaps[0]) / rate_rps
    return dataclasses.replace(scenario, trace=dataclasses.replace(scenario.trace, arrival_s=arrivals))


def test_the_limits_hold_at_the_rate_and_break_a_little_above_it():
    scenario = flood()
    rate_rps = highest_rate_rps(scenario, constants(scenario), LIMITS, SEED)
    assert rate_rps > 1
    assert LIMITS.kept(replay(at_rate(scenario, rate_rps), constants(scenario)))
    assert not LIMITS.kept(replay(at_rate(scenario, 1.1 * rate_rps), constants(scenario)))


def test_tighter_limits_allow_no_higher_rate():
    scenario = flood()
    rates = [highest_rate_rps(scenario, constants(scenario), Limits(ttft_s=t, tpot_s=0.03), SEED) for t in (0.1, 1.0)]
    assert rates[0] <= rates[1]


def test_limits_that_no_rate_keeps_give_a_rate_of_zero():
    scenario = flood(40)
    assert highest_rate_rps(scenario, constants(scenario), Limits(ttft_s=1e-6, tpot_s=1e-6), SEED) == 0


@pytest.mark.parametrize(("ttft_s", "kept"), [(0.99, True), (0.5, False)])
def test_a_percentile_is_over_requests(ttft_s, kept):
    scenario = make.scenario(make.trace([10] * 100, [2] * 100))
    outcome = replay(scenario, constants(scenario))
    outcome = dataclasses.replace(outcome, ttft_s=np.linspace(0, 0.98, 100), tpot_s=np.full(100, 0.01))
    assert Limits(ttft_s=ttft_s, tpot_s=0.02).kept(outcome) == kept
