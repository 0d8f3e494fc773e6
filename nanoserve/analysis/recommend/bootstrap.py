"""How sure a difference between two runs of the same requests is: a paired block bootstrap.

Requests that queue together fail together, so whole blocks of time are drawn, not requests; and the two runs serve the
same requests, so what is drawn is the difference within each block. Source: Efron and Tibshirani, "An Introduction to
the Bootstrap" (1993), chapter 8; Künsch, "The Jackknife and the Bootstrap for General Stationary Observations" (1989).
"""

import numpy as np

from nanoserve.analysis.estimate import CONFIDENCE, Estimate

_DRAWS, _SEED = 2000, 0


def mean_difference(before: np.ndarray, after: np.ndarray, block: np.ndarray) -> Estimate:
    """The mean over requests of after - before, with its interval.

    Args:
      before, after: float [N], one value a request, in the same order; NaN in either leaves the request out.
      block: int [N], which block of time it belongs to, dense from 0.
    """
    difference = after - before
    known = np.isfinite(difference)
    return _mean(np.where(known, difference, 0.0), known.astype(np.float64), block)


def ratio_of_sums(before: np.ndarray, after: np.ndarray, block: np.ndarray) -> Estimate:
    """sum(after) / sum(before), with its interval; NaN where the denominator is 0.

    Args:
      before, after: float [N], one value a request. block: as for `mean_difference`.
    """
    sums = np.stack([np.bincount(block, values, minlength=1) for values in (after, before)])
    drawn = _drawn(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[0] / drawn[1]
        estimate = float(sums[0].sum() / sums[1].sum())
    return _interval(estimate, ratios)


def _mean(values: np.ndarray, weights: np.ndarray, block: np.ndarray) -> Estimate:
    sums = np.stack([np.bincount(block, each, minlength=1) for each in (values, weights)])
    if not sums[1].sum():
        return Estimate(np.nan, np.nan, np.nan)
    drawn = _drawn(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _interval(float(sums[0].sum() / sums[1].sum()), drawn[0] / drawn[1])


def _drawn(sums: np.ndarray) -> np.ndarray:
    """Sums over blocks that are drawn with replacement, as many as there are; float [2, draws]."""
    count = sums.shape[1]
    times = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    return sums @ times.T


def _interval(value: float, drawn: np.ndarray) -> Estimate:
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return Estimate(value, np.nan, np.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))
