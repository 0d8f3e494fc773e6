"""The best interval between snapshots, laid beside simulated failures."""

import numpy as np
import pytest

from nanoserve.analysis.snapshot_interval import best_interval_s, expected_s, young_interval_s

WORK_S = 50_000.0
CASES = [(2.0, 3600.0, 60.0), (30.0, 3600.0, 120.0), (20.0, 400.0, 30.0)]  # snapshot, between failures, recovery
NOISE = 0.02  # of the mean of simulated runs


def simulated_s(segments: int, interval_s: float, snapshot_s: float, mtbf_s: float, recovery_s: float, seed: int):
    """When a run of so many segments ends, failures drawn one by one: an attempt lasts until it is done or fails."""
    rng = np.random.default_rng(seed)
    elapsed_s, left, need_s = 0.0, segments, interval_s + snapshot_s
    while left:
        until_failure_s = rng.exponential(mtbf_s)
        done = min(left, int(until_failure_s // need_s))
        left -= done
        if not left:
            return elapsed_s + done * need_s
        elapsed_s += until_failure_s
        while (down_s := rng.exponential(mtbf_s)) < recovery_s:  # it fails again while it recovers
            elapsed_s += down_s
        elapsed_s += recovery_s
    return elapsed_s


def mean_s(interval_s: float, case: tuple[float, float, float], runs: int = 120) -> float:
    """The mean of runs of about `WORK_S`, scaled to it: a run has whole segments."""
    segments = round(WORK_S / interval_s)
    total = sum(simulated_s(segments, interval_s, *case, seed=seed) for seed in range(runs))
    return total / runs * WORK_S / (segments * interval_s)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_the_expected_end_is_that_of_simulated_failures(case, factor):
    snapshot_s, mtbf_s, recovery_s = case
    interval_s = factor * best_interval_s(snapshot_s, mtbf_s)
    expected = expected_s(WORK_S, interval_s, snapshot_s=snapshot_s, mtbf_s=mtbf_s, recovery_s=recovery_s)
    assert mean_s(interval_s, case) == pytest.approx(expected, rel=NOISE)


@pytest.mark.parametrize("case", CASES)
def test_no_simulated_interval_ends_sooner_than_the_best_one(case):
    """Over a factor of nine either way; what is within the noise is as good."""
    best_s = best_interval_s(case[0], case[1])
    ends = [mean_s(best_s * 3.0**power, case) for power in (-2, -1, 0, 1, 2)]
    assert ends[2] <= min(ends) * (1 + NOISE)
    assert ends[0] > ends[2] < ends[-1]


@pytest.mark.parametrize("case", CASES)
def test_the_best_interval_is_where_the_expected_end_is_soonest(case):
    snapshot_s, mtbf_s, recovery_s = case
    grid = best_interval_s(snapshot_s, mtbf_s) * np.linspace(0.5, 2.0, 3001)
    ends = [expected_s(1.0, t, snapshot_s=snapshot_s, mtbf_s=mtbf_s, recovery_s=recovery_s) for t in grid]
    assert best_interval_s(snapshot_s, mtbf_s) == pytest.approx(grid[np.argmin(ends)], rel=0.01)


def test_youngs_interval_is_near_where_snapshots_are_short():
    assert young_interval_s(1.0, 1e6) == pytest.approx(best_interval_s(1.0, 1e6), rel=1e-3)
    assert best_interval_s(10.0, 4.0) == 4.0
