"""Distributions that merge: what a part of a log says and what another part says make what the whole says.

`Counts` holds integers exactly, however many: lengths in tokens have few values. `Floats` holds the values themselves
up to `EXACT_VALUES` and beyond that counts them in buckets a fixed factor apart, so that every order statistic is
known to a relative error of `RELATIVE_ERROR`. Moments are exact to rounding in both, merged as Chan, Golub and LeVeque
do. Percentiles interpolate linearly between order statistics, which is numpy's default; variances divide by the number
of values. The order of values, and how they were split, changes nothing beyond these bounds.

Source: C. Masson et al., "DDSketch", VLDB 2019, section 2 (buckets); T. Chan, G. Golub, R. LeVeque, "Updating
Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Protocol, Self

import numpy as np

EXACT_VALUES = 1_000_000
RELATIVE_ERROR = 0.001
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_LEAST = 1e-9
"""Values up to this are one bucket, called 0: a nanosecond."""
_DENSE = 1 << 22  # integers up to here are counted in an array instead of being sorted


class Merges(Protocol):
    """Something that two parts of a log make together."""

    def merge(self, other: Self) -> Self: ...


def merged[S: Merges, T](parts: Iterable[T], of: Callable[[T], S]) -> S:
    """What the parts make together, one part at a time.

    Args:
      parts: in order, at least one. of: what one part makes.
    """
    return functools.reduce(lambda whole, part: whole.merge(part), map(of, parts))


@dataclasses.dataclass(frozen=True)
class Moments:
    """How many values, their mean, and the sum of squared distances from it."""

    count: int = 0
    mean: float = math.nan
    squares: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Of float [N]."""
        if not len(values):
            return cls()
        mean = float(values.mean())
        return cls(len(values), mean, float(np.square(values - mean).sum()))

    def merge(self, other: Self) -> Self:
        """Of both together."""
        if not self.count or not other.count:
            return self if self.count else other
        count, apart = self.count + other.count, other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * self.count * other.count / count
        return type(self)(count, self.mean + apart * other.count / count, squares)

    @property
    def std(self) -> float:
        """Standard deviation; NaN of nothing."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan


@dataclasses.dataclass(frozen=True)
class Counts:
    """Integers, exactly: which values there are and how often.

    Attributes:
      values: int64 [K], ascending. times: int64 [K], at least 1 each.
    """

    values: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Of int [N]."""
        if len(values) and values.min() >= 0 and values.max() < _DENSE:
            times = np.bincount(values)
            there = np.flatnonzero(times)
            return cls(there, times[there])
        return cls(*np.unique(values.astype(np.int64), return_counts=True))

    def merge(self, other: Self) -> Self:
        """Of both together."""
        values, place = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        times = np.zeros(len(values), np.int64)
        np.add.at(times, place, np.concatenate([self.times, other.times]))
        return type(self)(values, times)

    @property
    def count(self) -> int:
        """How many values there are, repetitions included."""
        return int(self.times.sum())

    @property
    def total(self) -> int:
        """Their sum."""
        return int(np.dot(self.values, self.times))

    @property
    def mean(self) -> float:
        """Their mean; NaN of nothing."""
        return self.total / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Standard deviation; NaN of nothing."""
        if not self.count:
            return math.nan
        return math.sqrt(float(np.dot(np.square(self.values - self.mean), self.times)) / self.count)

    def quantiles(self, at: np.ndarray | tuple[float, ...]) -> np.ndarray:
        """Percentiles, exactly numpy's; float [len(at)], NaN of nothing."""
        return _interpolated(self.values.astype(np.float64), self.times, np.asarray(at, float))

    def share_held_by_top(self, share: float) -> float:
        """What part of the sum the largest values hold.

        Args:
          share: of the values, in (0, 1]; values are split where it ends within equal ones.
        """
        wanted = share * self.count
        above = np.cumsum(self.times[::-1])
        taken = np.diff(np.minimum(above, wanted), prepend=0.0)
        return float(np.dot(taken, self.values[::-1]) / self.total) if self.total else math.nan


@dataclasses.dataclass(frozen=True)
class Floats:
    """Numbers of which none is negative, exactly while they are few.

    Attributes:
      moments: exact to rounding. least, most: exact; NaN of nothing.
      exact: float64 [N], ascending, or None when there are more than `EXACT_VALUES`.
      first: number of the first bucket. buckets: int64 [K], values in bucket i are in (gamma^(i-1), gamma^i].
      tiny: values up to a nanosecond.
    """

    moments: Moments
    least: float
    most: float
    exact: np.ndarray | None
    first: int = 0
    buckets: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    tiny: int = 0

    @classmethod
    def of(cls, values: np.ndarray, exact_values: int = EXACT_VALUES) -> Self:
        """Of float [N]; NaN entries are missing.

        Args:
          values: none negative. exact_values: more than so many are put into buckets.
        """
        values = np.sort(values[~np.isnan(values)])
        bounds = (float(values[0]), float(values[-1])) if len(values) else (math.nan, math.nan)
        whole = cls(Moments.of(values), *bounds, values)
        return whole if len(values) <= exact_values else whole._in_buckets()

    def merge(self, other: Self, exact_values: int = EXACT_VALUES) -> Self:
        """Of both together; exact if both are and there are no more than `exact_values`."""
        moments = self.moments.merge(other.moments)
        least, most = _least(self.least, other.least), -_least(-self.most, -other.most)
        if self.exact is not None and other.exact is not None and moments.count <= exact_values:
            return type(self)(moments, least, most, np.sort(np.concatenate([self.exact, other.exact])))
        left, right = self._in_buckets(), other._in_buckets()
        first = min(part.first for part in (left, right))
        end = max(part.first + len(part.buckets) for part in (left, right))
        buckets = np.zeros(end - first, np.int64)
        for part in (left, right):
            buckets[part.first - first : part.first - first + len(part.buckets)] += part.buckets
        return type(self)(moments, least, most, None, first, buckets, left.tiny + right.tiny)

    def quantiles(self, at: np.ndarray | tuple[float, ...]) -> np.ndarray:
        """Percentiles: numpy's, or within `RELATIVE_ERROR` of them; float [len(at)], NaN of nothing."""
        wanted = np.asarray(at, float)
        if self.exact is not None:
            return np.quantile(self.exact, wanted) if len(self.exact) else np.full(len(wanted), np.nan)
        numbers = np.arange(self.first, self.first + len(self.buckets))
        middles = np.concatenate([[0.0], 2 * _GAMMA**numbers / (_GAMMA + 1)])
        times = np.concatenate([[self.tiny], self.buckets])
        there = times > 0
        return np.clip(_interpolated(middles[there], times[there], wanted), self.least, self.most)

    def share_up_to(self, limits: np.ndarray) -> np.ndarray:
        """What part of the values is at most each limit; exact, or as if limits were off by `RELATIVE_ERROR`."""
        if not self.moments.count:
            return np.full(len(limits), np.nan)
        if self.exact is not None:
            return np.searchsorted(self.exact, limits, side="right") / len(self.exact)
        below = np.concatenate([[self.tiny], self.tiny + np.cumsum(self.buckets)])
        with np.errstate(divide="ignore"):
            place = np.floor(np.log(np.maximum(limits, 0.0)) / _LOG_GAMMA + 1e-9) - self.first + 1
        shares = below[np.clip(place, 0, len(self.buckets)).astype(np.int64)] / self.moments.count
        return np.where(limits >= self.most, 1.0, np.where(limits < self.least, 0.0, shares))

    def _in_buckets(self) -> Self:
        if self.exact is None:
            return self
        above = self.exact[np.searchsorted(self.exact, _LEAST, side="right") :]
        tiny = len(self.exact) - len(above)
        numbers = np.ceil(np.log(above) / _LOG_GAMMA - 1e-9).astype(np.int64)
        first = int(numbers[0]) if len(numbers) else 0
        buckets = np.bincount(numbers - first) if len(numbers) else np.zeros(0, np.int64)
        return type(self)(self.moments, self.least, self.most, None, first, buckets, tiny)


def _least(one: float, other: float) -> float:
    """The smaller of two numbers, of which NaN stands for none."""
    return one if math.isnan(other) or one <= other else other


def _interpolated(values: np.ndarray, times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear between order statistics of values that are repeated so often."""
    ends = np.cumsum(times)
    if not len(ends):
        return np.full(len(at), np.nan)
    place = at * (ends[-1] - 1)
    below = np.floor(place).astype(np.int64)
    low, high = (
        values[np.searchsorted(ends, index, side="right")] for index in (below, np.minimum(below + 1, ends[-1] - 1))
    )
    return low + (high - low) * (place - below)
