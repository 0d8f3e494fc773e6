"""Intervals for shares and slopes: how sure a figure of a log is.

`scipy.stats` has the same, and the tests compare; but importing it takes longer than diagnosing a hundred thousand
requests, so only `scipy.special` is asked, for quantiles. Source: Wilson, "Probable inference, the law of succession,
and statistical inference" (JASA 22, 1927); Sen, "Estimates of the regression coefficient based on Kendall's tau" (JASA
63, 1968).
"""

import numpy as np
from scipy import special

from nanoserve.analysis.estimate import CONFIDENCE, Estimate


def wilson(successes: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Wilson interval of shares.

    Args:
      successes, trials: [M]; trials at least 1.

    Returns:
      low, high: float [M].
    """
    z = special.ndtri(0.5 + CONFIDENCE / 2)
    share, trials = successes / trials, np.asarray(trials, dtype=np.float64)
    centre = share + z**2 / (2 * trials)
    spread = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return np.maximum((centre - spread) / scale, 0.0), np.minimum((centre + spread) / scale, 1.0)


def robust_slope(x: np.ndarray, y: np.ndarray, confidence: float = CONFIDENCE) -> Estimate:
    """The median slope between points (Theil and Sen), with the interval that Kendall's tau gives it.

    Args:
      x, y: float [M], at least 3 points with different x. confidence: of the interval.
    """
    first, second = np.triu_indices(len(x), 1)
    apart = x[first] != x[second]
    first, second = first[apart], second[apart]
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    return Estimate(float(np.median(slopes)), *_sen_limits(slopes, len(x), confidence))


def _sen_limits(slopes: np.ndarray, points: int, confidence: float) -> tuple[float, float]:
    """The slopes, of all those between two points in order, that bound the median one."""
    spread = special.ndtri(0.5 + confidence / 2) * np.sqrt(points * (points - 1) * (2 * points + 5) / 18)
    low = max(round((len(slopes) - spread) / 2) - 1, 0)
    high = min(round((len(slopes) + spread) / 2), len(slopes) - 1)
    return float(slopes[low]), float(slopes[high])


def mean_of_blocks(values: np.ndarray) -> Estimate:
    """A mean over blocks of time that stand for themselves, by Student's t.

    Args:
      values: float [M], at least 2.
    """
    middle, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    reach = float(special.stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * error
    return Estimate(middle, middle - reach, middle + reach)
