"""Length distributions as quantile functions: how long prompts and outputs are."""

import dataclasses
import math
import statistics
from typing import Protocol

import numpy as np

from nanoserve.trace.ranges import require, require_positive
from nanoserve.trace.types import MAX_TOKENS

_NORMAL = statistics.NormalDist()


class Lengths(Protocol):
    """How long prompts or outputs are."""

    def tokens_at(self, levels: np.ndarray) -> np.ndarray:
        """The quantile function: levels in (0, 1) to tokens, not rounded; both float64, of one shape."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormal:
    """Lengths whose natural logarithm is normal with standard deviation `sigma`, cut to a range."""

    median_tokens: float
    sigma: float
    min_tokens: int = 1
    max_tokens: int = MAX_TOKENS

    def __post_init__(self):
        require_positive(self, "median_tokens")
        require(self, "sigma", 0 <= self.sigma < math.inf, "at least 0 and finite")
        require(self, "min_tokens", self.min_tokens >= 1, "at least 1")
        in_range = self.min_tokens <= self.max_tokens <= MAX_TOKENS
        require(self, "max_tokens", in_range, f"from min_tokens = {self.min_tokens} to {MAX_TOKENS:,}")

    def tokens_at(self, levels: np.ndarray) -> np.ndarray:
        """Levels in (0, 1) to tokens."""
        normals = np.array([_NORMAL.inv_cdf(level) for level in levels.tolist()])
        exponents = np.minimum(self.sigma * normals, 700.0)  # exp stays finite
        return np.clip(self.median_tokens * np.exp(exponents), self.min_tokens, self.max_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Lengths given by their quantiles, with straight lines in between.

    Attributes:
      levels: increasing, from 0 to 1. tokens: the quantile at each level, not decreasing, at least 1.
    """

    levels: tuple[float, ...]
    tokens: tuple[float, ...]

    def __post_init__(self):
        levels, tokens = np.array(self.levels), np.array(self.tokens)
        spans = len(levels) >= 2 and levels[0] == 0 and levels[-1] == 1 and bool((np.diff(levels) > 0).all())
        require(self, "levels", spans, "increasing from 0 to 1")
        good = len(tokens) == len(levels) and tokens[0] >= 1 and bool((np.diff(tokens) >= 0).all())
        require(self, "tokens", good and tokens[-1] <= MAX_TOKENS, "one per level, from 1 up, not decreasing")

    def tokens_at(self, levels: np.ndarray) -> np.ndarray:
        """Levels in (0, 1) to tokens."""
        return np.interp(levels, self.levels, self.tokens)
