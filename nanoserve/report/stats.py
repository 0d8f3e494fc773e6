"""Means and percentiles of a sample, weighted or not, without ever repeating a value by its weight.

Percentiles interpolate linearly between order statistics (numpy's default), so a weighted sample gives what numpy gives
for the same sample written out. Values are sorted before they are summed: the order of rows changes no bit.
"""

import dataclasses
import math

import numpy as np

QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What is reported of a sample: its size, and NaN for everything else when it is empty."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


EMPTY = Distribution(0, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)


def distribution(values: np.ndarray, weights: np.ndarray | None = None) -> Distribution:
    """Describes a sample.

    Args:
      values: float [N]; NaN entries are missing and not counted.
      weights: integer [N], how often each value occurs; None means once.
    """
    values, times = _sorted_sample(values, weights)
    count = int(times.sum())
    if not count:
        return EMPTY
    mean = float(np.sum(values * times) / count)
    p50, p90, p95, p99 = quantiles(values, QUANTILES, times).tolist()
    return Distribution(count, mean, p50, p90, p95, p99, max=float(values[-1]))


def quantiles(values: np.ndarray, at: tuple[float, ...] | np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Percentiles of a sample, as `numpy.quantile` would give them of `numpy.repeat(values, weights)`.

    Args:
      values: float [N]; NaN entries are missing.
      at: positions in [0, 1].
      weights: integer [N], or None.

    Returns:
      float [len(at)]; NaN where the sample is empty.
    """
    values, times = _sorted_sample(values, weights)
    ends = np.cumsum(times)
    if not len(ends):
        return np.full(len(at), np.nan)
    place = np.asarray(at) * (ends[-1] - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, ends[-1] - 1)
    low, high = (values[np.searchsorted(ends, index, side="right")] for index in (below, above))
    return low + (high - low) * (place - below)


def _sorted_sample(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    times = np.ones(len(values), dtype=np.int64) if weights is None else weights
    kept = ~np.isnan(values) & (times > 0)
    order = np.lexsort((times[kept], values[kept]))
    return values[kept][order], times[kept][order]
