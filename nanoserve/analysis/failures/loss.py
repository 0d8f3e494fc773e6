"""What each request lost, as a share of the time it took: the one unit in which causes are compared.

A failed request lost everything, 1. A served one may have waited for its first token longer than such a prompt waits on
an idle engine, and its tokens may have come slower than on a quiet one; what that took, over all the time that it took,
is its loss: a request that took twice its time has lost a half. What an idle engine takes is read from the same log,
from the requests that found it idle, so no model or chip has to be known.

Next: `shortage`, why they waited; `causes`, who is blamed.
"""

import dataclasses
import functools

import numpy as np

from nanoserve.analysis.failures.occupancy import rows_of, sums_by_replica
from nanoserve.analysis.service import Service

QUIET_ROWS = 20  # fewer requests that found the engine idle say nothing about their kind
_BINS_PER_OCTAVE = 2
_ALONE = 0.9  # quantile of the first token on an idle engine: a prompt that was not kept from the turn before
_LEAST_TOKENS = 8  # of an answer whose pace is looked at
_LINE_SLACK = 1.5  # prompts in line share their steps with sequences that decode
_STEP_SLACK = 4.0  # the step that ran, and those of the line that were not full


@dataclasses.dataclass(frozen=True)
class Loss:
    """What requests lost.

    Attributes:
      service: whose requests. All arrays are [N], a row a request, in the order of its table.
    """

    service: Service

    @functools.cached_property
    def start_s(self) -> np.ndarray:
        """When each was sent."""
        return self.service.floats("time_s")

    @functools.cached_property
    def latency_s(self) -> np.ndarray:
        """How long each took, or took to fail; NaN where unknown."""
        return self.service.floats("latency_s")

    @functools.cached_property
    def end_s(self) -> np.ndarray:
        """When it was over; NaN where the log has no latency."""
        return self.start_s + self.latency_s

    @functools.cached_property
    def ahead(self) -> np.ndarray:
        """Requests on its engine when it came."""
        return sums_by_replica(self.start_s, self.start_s, self.end_s, self.service.replicas)

    @functools.cached_property
    def ttft_s(self) -> np.ndarray:
        """Time to the first token; NaN where unknown."""
        return self.service.floats("ttft_s")

    @functools.cached_property
    def tpot_s(self) -> np.ndarray:
        """Time per token after the first; NaN for failed ones, short answers, and logs without first tokens."""
        if not self._timed:
            return np.broadcast_to(np.nan, self.service.requests.height)
        tokens = self.service.floats("response_tokens")
        with np.errstate(divide="ignore", invalid="ignore"):
            pace_s = (self.latency_s - self.ttft_s) / (tokens - 1)
        return np.where((tokens >= _LEAST_TOKENS) & ~self.service.failed, pace_s, np.nan)

    @functools.cached_property
    def alone_s(self) -> np.ndarray:
        """What the first token of such a prompt takes on an idle engine; NaN where too few found one idle."""
        if not self._timed:
            return np.broadcast_to(np.nan, self.service.requests.height)
        return _first_token_alone_s(self.service.floats("prompt_tokens"), self.ttft_s, self.ahead)

    @functools.cached_property
    def waited_s(self) -> np.ndarray:
        """How much longer than that its first token took; 0 for failed ones and where unknown."""
        if not self._timed:
            return self._nothing
        waited_s = np.nan_to_num(self.ttft_s - self.alone_s, nan=0.0)
        return np.where(self.service.failed, 0.0, np.maximum(waited_s, 0.0))

    @functools.cached_property
    def line_s(self) -> np.ndarray:
        """What the prompts in line before each request take one by one on an idle engine."""
        if not self._timed:
            return self._nothing
        first_s = self.start_s + self.ttft_s
        alone_s = np.nan_to_num(self.alone_s)
        return sums_by_replica(self.start_s, self.start_s, first_s, self.service.replicas, alone_s)

    @functools.cached_property
    def blocked_s(self) -> np.ndarray:
        """The part of the wait that neither the line nor the step that ran accounts for: no slot, or no memory."""
        if not self._timed:
            return self._nothing
        accounted_s = _LINE_SLACK * self.line_s + _STEP_SLACK * np.nan_to_num(self.quiet_tpot_s)
        return np.maximum(self.waited_s - accounted_s, 0.0)

    @functools.cached_property
    def quiet_tpot_s(self) -> float:
        """The median pace of requests that found the engine idle, on the fastest one; NaN where there are too few."""
        quiet = (self.ahead == 0) & ~np.isnan(self.tpot_s)
        paces = (self.tpot_s[rows][quiet[rows]] for rows in rows_of(self.service.replicas))
        return min((float(np.median(pace)) for pace in paces if len(pace) >= QUIET_ROWS), default=np.nan)

    @functools.cached_property
    def slowed_s(self) -> np.ndarray:
        """How much longer its tokens took than on a quiet engine; 0 for failed ones and where unknown."""
        if not self._timed:
            return self._nothing
        share = np.maximum(np.nan_to_num(1 - self.quiet_tpot_s / self.tpot_s, nan=0.0), 0.0)
        return share * np.nan_to_num(self.latency_s - self.ttft_s)

    @functools.cached_property
    def lost(self) -> np.ndarray:
        """What each request lost, 0 to 1."""
        if not self._timed:
            return self.service.failed.astype(np.float64)
        return np.where(self.service.failed, 1.0, _share(self.waited_s + self.slowed_s, self.latency_s))

    def spared(self, less_s: np.ndarray) -> np.ndarray:
        """What each request would not have lost, had it waited or been slowed so much less; 0 for failed ones.

        Args:
          less_s: float [N], seconds; what exceeds the time that a request lost counts for nothing.
        """
        if not self._timed:
            return self._nothing
        lost_s = self.waited_s + self.slowed_s
        less_s = np.minimum(less_s, lost_s)
        left = _share(lost_s - less_s, self.latency_s - less_s)
        return np.where(self.service.failed, 0.0, np.maximum(self.lost - left, 0.0))

    @functools.cached_property
    def _timed(self) -> bool:
        """Whether the log has first tokens: without them nobody is known to have waited."""
        return self.service.has("ttft_s", "latency_s")

    @property
    def _nothing(self) -> np.ndarray:
        """0 for every request, in no memory."""
        return np.broadcast_to(0.0, self.service.requests.height)

    @functools.cached_property
    def of_failing(self) -> float:
        """What a failed request lost beyond a served one."""
        served = ~self.service.failed
        return 1 - float(self.lost[served].mean()) if served.any() else 1.0

    @property
    def mean(self) -> float:
        """What the service lost: the mean over its requests; 0 where there are none."""
        return float(self.lost.mean()) if len(self.lost) else 0.0


def _share(part_s: np.ndarray, whole_s: np.ndarray) -> np.ndarray:
    """A part of a time as a share of it, 0 to 1; 0 where either is unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.nan_to_num(part_s / whole_s, nan=0.0), 0.0, 1.0)


def _first_token_alone_s(prompt_tokens: np.ndarray, ttft_s: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """For each prompt, a high quantile of the time to the first token among idle arrivals of like length."""
    bins = np.floor(np.log2(np.maximum(prompt_tokens, 1)) * _BINS_PER_OCTAVE).astype(np.int64)
    idle = (ahead == 0) & ~np.isnan(ttft_s)
    known, level_s = [], []
    for each in np.unique(bins[idle]):
        rows = ttft_s[idle & (bins == each)]
        if len(rows) >= QUIET_ROWS:
            known.append(each)
            level_s.append(np.quantile(rows, _ALONE))
    if not known:
        return np.full(len(ttft_s), np.nan)
    return np.interp(bins, known, np.maximum.accumulate(level_s))
