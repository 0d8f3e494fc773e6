"""What a distribution of lengths does in its tail: a power law, a lognormal, or too little to say.

Both are fitted to the values from `least` on, as whole numbers: a length of k tokens is anything from k - 1/2 to
k + 1/2. `least` is where a power law fits best, by the largest distance between its distribution and the data's
(Kolmogorov-Smirnov). Which of the two fits better is Vuong's test: the sum of log-likelihood ratios over its standard
deviation is normal if both are equally far from the truth.

Source: A. Clauset, C. Shalizi, M. Newman, "Power-law distributions in empirical data", SIAM Review 51, 2009, sections
3 and 5; Q. Vuong, Econometrica 57, 1989.
"""

import dataclasses
import math

import numpy as np

from nanoserve.analysis.anatomy.sketch import Counts

_LEAST_TAIL = 50
"""Values that a tail must have: with fewer every law fits."""
_CANDIDATES = 200
_LEVEL = 0.1  # Clauset et al. call a difference with a larger p-value undecided


@dataclasses.dataclass(frozen=True)
class Tail:
    """Two fits to one tail.

    Attributes:
      least: where it begins, tokens. rows: values in it. distance: Kolmogorov-Smirnov, of the power law.
      alpha: exponent of the power law's density. mu, sigma: of the lognormal, of the logarithm of tokens.
      ratio: Vuong's statistic; positive where the power law fits better. p_value: that chance made it so large.
    """

    least: int
    rows: int
    distance: float
    alpha: float
    mu: float
    sigma: float
    ratio: float
    p_value: float

    @property
    def verdict(self) -> str:
        """`power law`, `lognormal` or `undecided`."""
        if self.p_value > _LEVEL:
            return "undecided"
        return "power law" if self.ratio > 0 else "lognormal"

    def power_law_at_least(self, tokens: np.ndarray) -> np.ndarray:
        """Share of the tail's values that are at least so large, by the power law."""
        return ((tokens - 0.5) / (self.least - 0.5)) ** (1 - self.alpha)

    def lognormal_at_least(self, tokens: np.ndarray) -> np.ndarray:
        """Share of the tail's values that are at least so large, by the lognormal."""
        return np.exp(_log_above(tokens - 0.5, self.mu, self.sigma) - _log_above(self.least - 0.5, self.mu, self.sigma))


def fit_tail(counts: Counts) -> Tail | None:
    """Fits both laws to the tail of a distribution.

    Args:
      counts: lengths; those below 1 do not count.

    Returns:
      None where no tail has at least fifty values and two different ones.
    """
    values, times = (part[counts.values > 0] for part in (counts.values, counts.times))
    starts = _candidates(times)
    if not len(starts):
        return None
    fits = [_power_law(values[start:], times[start:]) for start in starts]
    best = int(np.argmin([distance for _, distance in fits]))
    start, (alpha, distance) = int(starts[best]), fits[best]
    tail, weights = values[start:].astype(np.float64), times[start:]
    mu, sigma = _lognormal(tail, weights)
    ratio, p_value = _vuong(tail, weights, alpha, mu, sigma)
    return Tail(int(tail[0]), int(weights.sum()), distance, alpha, mu, sigma, ratio, p_value)


def _candidates(times: np.ndarray) -> np.ndarray:
    """Places in the sorted values at which a tail may begin, spread evenly over the logarithm of its size."""
    sizes = np.cumsum(times[::-1])[::-1]
    enough = np.flatnonzero((sizes >= _LEAST_TAIL) & (np.arange(len(sizes)) < len(sizes) - 1))
    if len(enough) <= _CANDIDATES:
        return enough
    wanted = np.geomspace(sizes[enough[0]], sizes[enough[-1]], _CANDIDATES)
    places = np.searchsorted(-sizes, -wanted)
    return np.unique(np.clip(places, enough[0], enough[-1]))


def _power_law(values: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """The most likely exponent (Clauset et al., equation 3.7) and the distance to the data.

    Args:
      values: int [K], ascending, all of the tail. times: how often each occurs.
    """
    ratio = values / (values[0] - 0.5)
    rows = times.sum()
    alpha = 1 + float(rows / np.dot(np.log(ratio), times))
    at_least = np.cumsum(times[::-1])[::-1] / rows
    fitted = ((values - 0.5) / (values[0] - 0.5)) ** (1 - alpha)
    return alpha, float(np.abs(at_least - fitted).max())


def _lognormal(values: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """The most likely lognormal, given that values are at least the first."""
    from scipy.optimize import minimize

    logs, rows = np.log(values), times.sum()
    mean = float(np.dot(logs, times) / rows)
    spread = max(math.sqrt(float(np.dot(np.square(logs - mean), times) / rows)), 1e-3)

    def loss(point: np.ndarray) -> float:
        return -float(np.dot(_log_lognormal(values, point[0], math.exp(point[1])), times)) / rows

    # A tail is the far side of a lognormal whose middle may lie below it: both starts are tried.
    starts = [(mean, math.log(spread)), (mean - 3 * spread, math.log(2 * spread))]
    fits = [minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10}) for start in starts]
    best = min(fits, key=lambda fit: fit.fun).x
    return float(best[0]), math.exp(float(best[1]))


def _vuong(values: np.ndarray, times: np.ndarray, alpha: float, mu: float, sigma: float) -> tuple[float, float]:
    """The normalised sum of log-likelihood ratios, power law over lognormal, and its two-sided p-value."""
    ratios = _log_power_law(values, alpha) - _log_lognormal(values, mu, sigma)
    rows = times.sum()
    mean = float(np.dot(ratios, times) / rows)
    spread = math.sqrt(float(np.dot(np.square(ratios - mean), times) / rows))
    if spread == 0.0:
        return 0.0, 1.0
    ratio = mean * math.sqrt(rows) / spread
    return ratio, math.erfc(abs(ratio) / math.sqrt(2))


def _log_power_law(values: np.ndarray, alpha: float) -> np.ndarray:
    """Log of the chance of each whole number, of those from the first on."""
    log_first = math.log(values[0] - 0.5)
    above, below = ((1 - alpha) * (np.log(values + shift) - log_first) for shift in (-0.5, 0.5))
    return above + np.log(-np.expm1(below - above))


def _log_lognormal(values: np.ndarray, mu: float, sigma: float) -> np.ndarray:
    above, below = (_log_above(values + shift, mu, sigma) for shift in (-0.5, 0.5))
    inside = np.log(np.maximum(-np.expm1(below - above), 1e-300))
    return above + inside - _log_above(values[0] - 0.5, mu, sigma)


def _log_above(value: np.ndarray | float, mu: float, sigma: float) -> np.ndarray:
    """Log of the chance that a lognormal is above a value."""
    from scipy.special import log_ndtr

    return log_ndtr((mu - np.log(value)) / sigma)
