"""Arrival processes: when requests come.

All draw from unit-rate gaps, so a rate that changes in time is a bend of the clock: time t is reached when the rate has
summed up to as many arrivals as are due.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np

from nanoserve.trace.ranges import require, require_positive

_CURVE_POINTS = (
    720  # straight pieces of a diurnal sine; 2 minutes of a day, off by less than 1e-5 of a period's arrivals
)
_ZIPF_TERMS = 100_000  # of the series behind a mean; what is left out is below 1e-6 of it for a tail of 2.4
_HOUR_S = 3600.0
_WEEK_S = 7 * 86400.0


class Arrivals(Protocol):
    """When requests (with sessions: their first turns) come."""

    def times_s(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws `count` sorted times; float64 [count], seconds."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisson:
    """Independent arrivals at a constant rate."""

    rate_rps: float

    def __post_init__(self):
        require_positive(self, "rate_rps")

    def times_s(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws `count` sorted times, in seconds."""
        return np.cumsum(rng.exponential(1 / self.rate_rps, count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gamma:
    """Independent gaps of a gamma distribution; `cv` is their standard deviation over their mean (Poisson: 1)."""

    rate_rps: float
    cv: float

    def __post_init__(self):
        require_positive(self, "rate_rps", "cv")

    def times_s(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws `count` sorted times, in seconds."""
        shape = 1 / self.cv**2
        return np.cumsum(rng.gamma(shape, 1 / (shape * self.rate_rps), count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnOff:
    """Poisson arrivals whose rate switches between two values, each kept for an exponential time; starts on.

    This is the two-state Markov-modulated Poisson process. `off_rate_rps` may be 0.
    """

    on_rate_rps: float
    off_rate_rps: float
    mean_on_s: float
    mean_off_s: float

    def __post_init__(self):
        require_positive(self, "on_rate_rps", "mean_on_s", "mean_off_s")
        require(self, "off_rate_rps", 0 <= self.off_rate_rps < math.inf, "at least 0 and finite")

    def times_s(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws `count` sorted times, in seconds."""
        due = np.cumsum(rng.exponential(1.0, count))
        per_cycle = self.on_rate_rps * self.mean_on_s + self.off_rate_rps * self.mean_off_s
        knots_s, expected = np.zeros(1), np.zeros(1)
        while expected[-1] < due[-1]:
            cycles = math.ceil((due[-1] - expected[-1]) / per_cycle) + 1
            stays_s = rng.exponential((self.mean_on_s, self.mean_off_s), (cycles, 2))
            arrivals = stays_s * (self.on_rate_rps, self.off_rate_rps)
            knots_s = np.append(knots_s, knots_s[-1] + np.cumsum(stays_s))
            expected = np.append(expected, expected[-1] + np.cumsum(arrivals))
        return np.interp(due, expected, knots_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diurnal:
    """Poisson arrivals whose rate repeats with a period, as a sine or as a table.

    Attributes:
      rate_rps: mean over a period.
      amplitude: of the sine, as a share of the mean, 0 to 1. The trace starts at the mean, on the way up.
      period_s: a day, unless said otherwise.
      table: relative rates of equal parts of the period, e.g. of 24 hours; used instead of the sine if not empty.
    """

    rate_rps: float
    amplitude: float = 0.5
    period_s: float = 86400.0
    table: tuple[float, ...] = ()

    def __post_init__(self):
        require_positive(self, "rate_rps", "period_s")
        require(self, "amplitude", 0 <= self.amplitude <= 1, "from 0 to 1")
        good = not self.table or (min(self.table) >= 0 and 0 < sum(self.table) < math.inf)
        require(self, "table", good, "rates of at least 0, not all 0")

    def times_s(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws `count` sorted times, in seconds."""
        due = np.cumsum(rng.exponential(1.0, count)) / (self.rate_rps * self.period_s)  # in periods' worth of arrivals
        periods = np.floor(due)
        knots, arrived = self._curve()
        return (periods + np.interp(due - periods, arrived, knots)) * self.period_s

    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        """One period: how much of it has passed, and of its arrivals, at knots between which the rate is constant."""
        knots = np.linspace(0, 1, (len(self.table) or _CURVE_POINTS) + 1)
        if self.table:
            arrived = np.append(0.0, np.cumsum(self.table))
            return knots, arrived / arrived[-1]
        return knots, knots + self.amplitude * (1 - np.cos(2 * np.pi * knots)) / (2 * np.pi)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeeklyBursts:
    """Arrivals one by one and in bursts, at rates that follow the hours of a week; time 0 is 0:00 of a Monday.

    The moments at which one or more requests come are spread as those of a Poisson process whose number is known; then
    the clock is bent so that every hour has its share of the requests, but for what a crowd at its edge brings. So a
    week's worth of requests takes a week, not more or less.

    Attributes:
      rate_rps: mean over a week.
      weekday, weekend: relative rates of the hours of a day, 24 each.
      tail: requests come together in numbers n that fall off as n ** -tail (Zipf): most of them come alone, a few in
        crowds. most: the largest of these numbers in the busiest hour; in others it is as much lower as the rate is.
      gap_s: mean time between two that come together (exponential).
    """

    rate_rps: float
    weekday: tuple[float, ...]
    weekend: tuple[float, ...]
    tail: float
    most: int
    gap_s: float

    def __post_init__(self):
        require_positive(self, "rate_rps")
        require(self, "tail", 1 < self.tail < math.inf, "above 1 and finite")
        require(self, "most", self.most >= 1, "at least 1")
        require(self, "gap_s", 0 <= self.gap_s < math.inf, "at least 0 and finite")
        for field in ("weekday", "weekend"):
            rates = getattr(self, field)
            require(self, field, len(rates) == 24 and min(rates) > 0 and max(rates) < math.inf, "24 rates above 0")

    def times_s(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws `count` sorted times, in seconds."""
        ends_s, requests, largest = self._hours(count)
        moments = np.append(0, np.cumsum(np.diff(requests) / self._mean_sizes(largest)))
        place, size = self._drawn(moments, largest, count, rng)
        arrived = np.append(0, np.cumsum(size))
        due = np.interp(requests, arrived * (count / arrived[-1]), np.append(0, place))
        begin_s = np.interp(place, due, ends_s)
        member = np.repeat(np.arange(len(size)), size)[:count]
        passed_s = np.cumsum(rng.exponential(self.gap_s, count))
        first = np.searchsorted(member, np.arange(len(size)))
        return np.sort(begin_s[member] + passed_s - passed_s[first[member]])

    def _hours(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The hours until so many requests are there, the last of them cut.

        Returns:
          Their ends in seconds and the requests by then, both float [hours + 1] from 0; and the largest number of
          requests that come together in each, int64 [hours].
        """
        week = np.array((*self.weekday * 5, *self.weekend * 2))
        weeks = count / self.rate_rps / _WEEK_S
        rates = np.tile(week, math.ceil(weeks))
        reached = np.append(0.0, np.cumsum(rates)) / week.sum() / weeks
        hours = int(np.searchsorted(reached, 1 - 1e-12))
        ends_s = np.arange(len(reached)) * _HOUR_S
        ends_s = np.append(ends_s[:hours], np.interp(1.0, reached, ends_s))
        largest = np.maximum(np.rint(self.most * rates[:hours] / week.max()), 1).astype(np.int64)
        return ends_s, count * np.append(reached[:hours], 1.0), largest

    def _drawn(
        self, moments: np.ndarray, largest: np.ndarray, count: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moments at which `count` requests come or a few more: place among those of all hours, and how many come."""
        place = rng.uniform(0, moments[-1], count)
        hour = np.clip(np.searchsorted(moments, place) - 1, 0, None)
        size = np.minimum(rng.zipf(self.tail, count), largest[hour])
        enough = int(np.searchsorted(np.cumsum(size), count)) + 1
        order = np.argsort(place[:enough])
        return place[order], size[order]

    def _mean_sizes(self, largest: np.ndarray) -> np.ndarray:
        """Mean of the numbers in which requests come, where those above `largest` are cut to it."""
        chances = np.arange(1, _ZIPF_TERMS) ** -self.tail
        at_least = np.cumsum(chances[::-1])[::-1] / chances.sum()
        return np.cumsum(at_least)[largest - 1]
