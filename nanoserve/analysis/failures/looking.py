"""How often an engine looks for new requests, read from how long they wait for it when nobody is in line.

Who comes alone to an engine that is decoding waits for the step that runs to end: anything from nothing to a whole
step, half of one on average. An engine that looks only every so often adds a wait from nothing to that interval. So the
time to the first token, beyond what such a prompt takes on an idle engine, is the sum of two uniform waits; the step is
known from the time per token, and the interval is what fits best. Only the lower half of the waits is fitted: the upper
may have been waiting for memory, or for prompts ahead.

Next: `hypotheses`.
"""

import dataclasses

import numpy as np

from nanoserve.analysis.estimate import Estimate
from nanoserve.analysis.failures.intervals import mean_of_blocks
from nanoserve.analysis.failures.loss import QUIET_ROWS, Loss
from nanoserve.analysis.failures.occupancy import rows_of

CALM_BEFORE_S, CALM_AFTER_S = 1.0, 0.25
"""Nobody else comes to the engine so long before and after: a line would take its own time."""

_LONGEST_PROMPT = 512  # tokens: a step with a longer one takes longer than its own time alone
_LEVELS = np.linspace(0.05, 0.5, 19)
_CANDIDATES = 120
_LONGEST_STEPS = 40.0  # intervals up to so many steps are tried
_BLOCKS = 8
_LEAST_ROWS = 20 * _BLOCKS
_WORST_FIT = 0.12  # between the waits' shares and those of the two uniform waits
_MATTERS = 0.3  # of a step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looking:
    """What fits best.

    Attributes:
      interval: seconds between two looks. step_s: median time of a decode step.
      misfit: largest distance between the shares of waits that are as short and those that the fit has, 0 to 1.
      wait_s: median wait beyond an idle engine's. rows: requests behind it.
    """

    interval: Estimate
    step_s: float
    misfit: float
    wait_s: float
    rows: int

    @property
    def slow(self) -> bool:
        """Whether there surely is an interval that matters beside a step, and it explains how waits are spread."""
        return self.interval.low > _MATTERS * self.step_s and self.misfit < _WORST_FIT


@dataclasses.dataclass(frozen=True)
class _Waits:
    """Waits of lone requests, and the step of the engine that each of them met; [N], in order of time."""

    wait_s: np.ndarray
    step_s: np.ndarray


def looking(loss: Loss) -> Looking | None:
    """How often the engines of a service look for new requests; None where too few came alone to a busy one.

    Args:
      loss: of a service with first tokens.
    """
    waits = _lone_waits(loss)
    rows = len(waits.wait_s)
    if rows < _LEAST_ROWS:
        return None
    blocks = np.array_split(np.arange(rows), _BLOCKS)
    by_block = [_fit(_Waits(waits.wait_s[block], waits.step_s[block]))[0] for block in blocks]
    interval_s, misfit = _fit(waits)
    around = mean_of_blocks(np.array(by_block))
    return Looking(
        interval=Estimate(interval_s, max(0.0, around.low), around.high),
        step_s=float(np.median(waits.step_s)),
        misfit=misfit,
        wait_s=float(np.median(waits.wait_s)),
        rows=rows,
    )


def _lone_waits(loss: Loss) -> _Waits:
    """Waits of requests that came alone to a busy engine, beyond the median of their like on an idle one."""
    prompts = loss.service.floats("prompt_tokens")
    bins = np.floor(np.log2(np.maximum(prompts, 1))).astype(np.int64)
    usable = ~np.isnan(loss.ttft_s) & ~loss.service.failed & (prompts <= _LONGEST_PROMPT) & _alone(loss)
    wait_s, step_s = np.full(len(prompts), np.nan), np.full(len(prompts), np.nan)
    for rows in rows_of(loss.service.replicas):
        own = np.zeros(len(prompts), dtype=bool)
        own[rows] = True
        pace_s = loss.tpot_s[rows]
        step_s[rows] = np.nanmedian(pace_s) if not np.isnan(pace_s).all() else np.nan
        for each in np.unique(bins[own & usable]):
            like = own & usable & (bins == each)
            idle, busy = like & (loss.ahead == 0), like & (loss.ahead > 0)
            if np.count_nonzero(idle) >= QUIET_ROWS:
                wait_s[busy] = loss.ttft_s[busy] - np.median(loss.ttft_s[idle])
    known = ~(np.isnan(wait_s) | np.isnan(step_s))
    return _Waits(wait_s[known], step_s[known])


def _alone(loss: Loss) -> np.ndarray:
    """Whether nobody else came to the same engine shortly before or after each request, bool [N]."""
    alone = np.zeros(len(loss.start_s), dtype=bool)
    for rows in rows_of(loss.service.replicas):
        gaps_s = np.diff(loss.start_s[rows])
        alone[rows] = (np.append(np.inf, gaps_s) > CALM_BEFORE_S) & (np.append(gaps_s, np.inf) > CALM_AFTER_S)
    return alone


def _fit(waits: _Waits) -> tuple[float, float]:
    """The interval whose waits are spread most like these, and how far from them it is."""
    at_s = np.quantile(waits.wait_s, _LEVELS)
    steps, counts = np.unique(waits.step_s, return_counts=True)
    middle_s = float(np.median(waits.step_s))
    candidates = middle_s * np.concatenate([[0.0], np.geomspace(0.05, _LONGEST_STEPS, _CANDIDATES)])
    shares = sum(
        count / counts.sum() * _share_within(at_s, candidates[:, None], step)
        for step, count in zip(steps, counts, strict=True)
    )
    misfit = np.abs(shares - _LEVELS).max(axis=1)
    best = int(np.argmin(misfit))
    return float(candidates[best]), float(misfit[best])


def _share_within(wait_s: np.ndarray, interval_s: np.ndarray, step_s: float) -> np.ndarray:
    """The chance that the sum of a uniform wait up to an interval and one up to a step is at most so long."""
    longer, shorter = np.maximum(interval_s, step_s), np.maximum(np.minimum(interval_s, step_s), 1e-9)
    wait_s = np.clip(wait_s, 0.0, longer + shorter)
    rising = np.minimum(wait_s, shorter) ** 2 / 2
    level = np.clip(wait_s - shorter, 0.0, longer - shorter) * shorter
    falling = np.maximum(wait_s - longer, 0.0)
    return (rising + level + falling * shorter - falling**2 / 2) / (longer * shorter)
