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

    Given how many requests there are, the moments at which one or a burst of them comes are uniform in the week's bent
    clock, as those of a Poisson process are. So a week's worth of requests takes a week, not more or less.

    Attributes:
      rate_rps: mean over a week.
      weekday, weekend: relative rates of the hours of a day, 24 each.
      tail: requests come together in numbers n that fall off as n ** -tail (Zipf): most of them come alone, a few in
        crowds. most: the largest of these numbers.
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
        size = np.minimum(rng.zipf(self.tail, count), self.most)
        moments = int(np.searchsorted(np.cumsum(size), count)) + 1
        begin_s = self._clock(np.sort(rng.uniform(0, count / self.rate_rps, moments)))
        member = np.repeat(np.arange(moments), size[:moments])[:count]
        passed_s = np.cumsum(rng.exponential(self.gap_s, count))
        first = np.searchsorted(member, np.arange(moments))
        return np.sort(begin_s[member] + passed_s - passed_s[first[member]])

    def _clock(self, even_s: np.ndarray) -> np.ndarray:
        """Times at the mean rate, bent so that as much time passes in every hour as its rate asks for."""
        rates = np.array((*self.weekday * 5, *self.weekend * 2))
        reached = np.append(0.0, np.cumsum(rates / rates.sum()))
        weeks, within = np.divmod(even_s / _WEEK_S, 1.0)
        return (weeks + np.interp(within, reached, np.linspace(0, 1, len(reached)))) * _WEEK_S
