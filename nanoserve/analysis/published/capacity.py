"""The highest rate of requests that a scenario serves within latency limits, found by replays.

Arrivals are Poisson with one set of gaps for all rates, so that a higher rate is the same trace, played faster, and the
search ends at one answer. Next: `comparison`.
"""

import dataclasses

import numpy as np

from nanoserve.analysis.published.scenario import Outcome, Scenario, replay
from nanoserve.roofline.calibration import Calibration

_TOLERANCE = 0.005  # of the rate at which all requests at once are served


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Most that a percentile of the requests may take.

    Attributes:
      ttft_s, tpot_s: limits. percentile: of the requests, 0 to 100.
    """

    ttft_s: float
    tpot_s: float
    percentile: float = 99.0

    def kept(self, outcome: Outcome) -> bool:
        """Whether an outcome is within them."""
        ttft_s = np.nanpercentile(outcome.ttft_s, self.percentile)
        tpot_s = np.nanpercentile(outcome.tpot_s, self.percentile)
        return bool(ttft_s <= self.ttft_s and tpot_s <= self.tpot_s)


def highest_rate_rps(scenario: Scenario, calibration: Calibration, limits: Limits, seed: int) -> float:
    """Returns the highest rate at which the requests of a scenario come and the limits are kept.

    Args:
      scenario: an open loop; its arrival times are replaced. calibration: its constants. limits: what to keep.
      seed: of the arrivals.
    """
    count = len(scenario.trace)
    gaps = np.random.default_rng(seed).exponential(size=count)
    unit_s = np.cumsum(gaps) - gaps[0]

    def kept(rate_rps: float) -> bool:
        trace = dataclasses.replace(scenario.trace, arrival_s=unit_s / rate_rps)
        return limits.kept(replay(dataclasses.replace(scenario, trace=trace), calibration))

    flooded = replay(scenario, calibration)
    served_rps = count / flooded.duration_s
    low, too_high = 0.0, 2 * served_rps
    while too_high - low > _TOLERANCE * served_rps:
        middle = (low + too_high) / 2
        low, too_high = (middle, too_high) if kept(middle) else (low, middle)
    return low
