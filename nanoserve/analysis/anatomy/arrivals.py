"""When requests come: by hour of the day, cumulatively, how unevenly, and how far apart.

Everything but the gaps is made of one array, requests by second since the log's start, which adds up over the parts of
a log. Gaps need requests in order of time, and parts of a log that follow one another.
"""

import dataclasses
from typing import Self

import numpy as np
import polars as pl

from nanoserve.analysis.anatomy.counting import duration
from nanoserve.analysis.anatomy.sketch import Floats, merged
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.logs.calendar import local_time
from nanoserve.analysis.logs.log_set import Joined

BURST_S = 0.01
BATCHING_INTERVALS_S = (0.001, 0.005, 0.01, 0.02, 0.05)
WINDOWS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_QUARTER_S = 900  # every zone is a whole number of quarters of an hour from UTC
_HALF_NS = 5e-10  # times are whole nanoseconds: a gap of just 10 ms is one, however its seconds are rounded
_CURVE_POINTS = 300
_GAP_DECADES = (-6, 5)
_BINS_A_DECADE = 10


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Requests by second.

    Attributes:
      first: the second of the first count. counts: int64 [N].
    """

    first: int
    counts: np.ndarray

    @classmethod
    def of(cls, time_s: np.ndarray) -> Self:
        """Of float [N], at least one time; in any order."""
        second = np.floor(time_s).astype(np.int64)
        first = int(second.min())
        return cls(first, np.bincount(second - first))

    def merge(self, other: Self) -> Self:
        """Of both together."""
        first = min(self.first, other.first)
        end = max(part.first + len(part.counts) for part in (self, other))
        counts = np.zeros(end - first, np.int64)
        for part in (self, other):
            counts[part.first - first : part.first - first + len(part.counts)] += part.counts
        return type(self)(first, counts)

    def dispersion(self, window_s: int) -> float:
        """Variance over mean of the requests in whole windows; 1 for a Poisson process, NaN with fewer than two."""
        windows = len(self.counts) // window_s
        if windows < 2:
            return np.nan
        sums = self.counts[: windows * window_s].reshape(windows, window_s).sum(axis=1)
        return float(sums.var() / sums.mean()) if sums.any() else np.nan


@dataclasses.dataclass(frozen=True)
class Gaps:
    """Times from one request to the next.

    Attributes:
      first_s, last_s: the first and last arrival. gaps: their distribution.
      up_to: int64 [K], gaps of at most `BURST_S` and of each of `BATCHING_INTERVALS_S`.
      histogram: int64 [M], by tenths of a decade from a microsecond on, gaps below it in the first.
    """

    first_s: float
    last_s: float
    gaps: Floats
    up_to: np.ndarray
    histogram: np.ndarray

    @classmethod
    def of(cls, time_s: np.ndarray) -> Self:
        """Of float [N], ascending, at least one."""
        return cls._of_gaps(float(time_s[0]), float(time_s[-1]), np.diff(time_s))

    def merge(self, other: Self) -> Self:
        """Of a part and the one that follows it, the gap between them included."""
        between = self._of_gaps(self.last_s, other.first_s, np.array([other.first_s - self.last_s]))
        parts = (self, between, other)
        gaps = merged(parts, lambda part: part.gaps)
        up_to, histogram = sum(part.up_to for part in parts), sum(part.histogram for part in parts)
        return type(self)(self.first_s, other.last_s, gaps, np.asarray(up_to), np.asarray(histogram))

    @classmethod
    def _of_gaps(cls, first_s: float, last_s: float, gaps_s: np.ndarray) -> Self:
        limits = np.array([BURST_S, *BATCHING_INTERVALS_S]) + _HALF_NS
        up_to = np.searchsorted(np.sort(gaps_s), limits, side="right")
        inside = np.clip(gaps_s, 10.0 ** _GAP_DECADES[0], 10.0 ** _GAP_DECADES[1] * (1 - 1e-12))
        histogram = np.histogram(inside, gap_edges_s())[0]
        return cls(first_s, last_s, Floats.of(gaps_s), up_to, histogram)


def gap_edges_s() -> np.ndarray:
    """Edges of the histogram of gaps, seconds."""
    low, high = _GAP_DECADES
    return np.logspace(low, high, (high - low) * _BINS_A_DECADE + 1)


def hours(joined: Joined) -> Finding:
    """`anatomy.arrivals.hours`: requests a second by hour of the day, its spread over days, weekdays and weekends.

    Hours are those of the log set's time zone. Of the first and the last hour the part within the log counts, if it is
    half of it. Series: `hour` 0 to 23 (hours that never were are left out), `mean_per_s`, `p5_per_s`, `p95_per_s`,
    `weekday_per_s`, `weekend_per_s` (NaN where there was none).
    """
    key = "anatomy.arrivals.hours"
    seconds = _seconds(joined)
    if not joined.logs.dated:
        return not_computed(key, "Requests by hour of the day", "the log has no dates, only times since its start")
    table = _by_hour(joined, seconds)
    if len(table) < 2:
        span = duration(len(seconds.counts))
        return not_computed(key, "Requests by hour of the day", f"the log covers {span}, not two hours of a day")
    weekend = pl.col("weekday") >= 6
    rate = pl.col("rate_per_s")
    by_hour = (
        table.group_by("hour")
        .agg(
            rate.mean().alias("mean_per_s"),
            rate.quantile(0.05, "linear").alias("p5_per_s"),
            rate.quantile(0.95, "linear").alias("p95_per_s"),
            rate.filter(~weekend).mean().alias("weekday_per_s"),
            rate.filter(weekend).mean().alias("weekend_per_s"),
        )
        .sort("hour")
    )
    most, least = (by_hour.sort("mean_per_s")[row].row(0, named=True) for row in (-1, 0))
    ratio = most["mean_per_s"] / least["mean_per_s"] if least["mean_per_s"] else None
    weekday_per_s, weekend_per_s = (table.filter(test)["rate_per_s"].mean() for test in (~weekend, weekend))
    title = f"Most requests come at {most['hour']:02d} h, {most['mean_per_s']:,.3g} a second"
    title += f", {ratio:,.3g} times as many as at {least['hour']:02d} h" if ratio else ""
    return Finding(
        key=key,
        title=title,
        rows=joined.rows,
        values={
            "peak_hour": most["hour"],
            "peak_per_s": most["mean_per_s"],
            "trough_hour": least["hour"],
            "trough_per_s": least["mean_per_s"],
            "peak_over_trough": ratio,
            "busiest_hour_per_s": table["rate_per_s"].max(),  # type: ignore[dict-item]
            "quietest_hour_per_s": table["rate_per_s"].min(),  # type: ignore[dict-item]
            "weekday_mean_per_s": weekday_per_s,  # type: ignore[dict-item]
            "weekend_mean_per_s": weekend_per_s,  # type: ignore[dict-item]
            "days": table["date"].n_unique(),
        },
        series={name: by_hour[name].cast(pl.Float64).to_numpy() for name in by_hour.columns},
    )


def cumulative(joined: Joined) -> Finding:
    """`anatomy.arrivals.cumulative`: what part of the requests had come by when.

    Series: `time_h` since the first request, `share`.
    """
    seconds = _seconds(joined)
    so_far = np.cumsum(seconds.counts)
    rows = np.unique(np.linspace(0, len(so_far) - 1, _CURVE_POINTS).astype(np.int64))
    half_s = int(np.searchsorted(so_far, so_far[-1] / 2)) + 1
    return Finding(
        key="anatomy.arrivals.cumulative",
        title=f"Half of the requests came within {duration(half_s)} of {duration(len(so_far))}",
        rows=joined.rows,
        values={"half_after_s": half_s, "span_s": len(so_far)},
        series={"time_h": (rows + 1) / 3600.0, "share": so_far[rows] / so_far[-1]},
    )


def dispersion(joined: Joined) -> Finding:
    """`anatomy.arrivals.dispersion`: variance over mean of the requests in windows of 1 s to 1 h.

    Windows follow one another from the second of the first request on; the variance divides by their number. Series:
    `window_s`, `dispersion`.
    """
    key = "anatomy.arrivals.dispersion"
    seconds = _seconds(joined)
    found = {window: seconds.dispersion(window) for window in WINDOWS_S}
    known = {window: value for window, value in found.items() if not np.isnan(value)}
    if 1 not in known:
        return not_computed(key, "Index of dispersion", "the requests span fewer than two seconds")
    title = f"Counts a second vary {known[1]:,.3g} times as much as a Poisson process's"
    title += f", counts a minute {known[60]:,.3g}" if 60 in known else ""
    return Finding(
        key=key,
        title=title,
        rows=joined.rows,
        values={f"dispersion_{window}s": known.get(window) for window in WINDOWS_S},
        series={"window_s": np.array(list(known), float), "dispersion": np.array(list(known.values()))},
    )


def gaps(joined: Joined) -> Finding:
    """`anatomy.arrivals.gaps`: times between requests, how many are a burst's, how many exceed a batching interval.

    The coefficient of variation is the standard deviation over the mean; 1 for a Poisson process. Series: `gap_s`,
    `share` (cumulative), `poisson_share` (of a Poisson process of the same rate); `edges_s` and `requests`, a
    histogram in tenths of a decade.
    """
    key = "anatomy.arrivals.gaps"
    if joined.rows < 2:
        return not_computed(key, "Gaps between requests", "there is one request")
    found = merged(joined.batches("time_s"), lambda part: Gaps.of(part["time_s"].to_numpy()))
    mean_s, cv = found.gaps.moments.mean, None
    if mean_s > 0:
        cv = found.gaps.moments.std / mean_s
    burst, *within = (found.up_to / found.gaps.moments.count).tolist()
    percentiles = dict(zip(("p50", "p90", "p95", "p99"), found.gaps.quantiles((0.5, 0.9, 0.95, 0.99)), strict=True))
    title = f"{burst:.1%} of the gaps are at most {BURST_S * 1e3:g} ms"
    title += f"; they vary {cv:,.3g} times as much as independent ones" if cv else ""
    limits_s = np.unique(found.gaps.quantiles(np.linspace(0, 1, _CURVE_POINTS)))
    edges_s = gap_edges_s()
    return Finding(
        key=key,
        title=title,
        rows=joined.rows,
        values={
            "gaps": found.gaps.moments.count,
            "mean_s": mean_s,
            "cv": cv,
            **{f"{name}_s": float(value) for name, value in percentiles.items()},
            "share_within_10ms": burst,
            **{
                f"share_beyond_{interval * 1e3:g}ms": 1 - share
                for interval, share in zip(BATCHING_INTERVALS_S, within, strict=True)
            },
        },
        series={
            "gap_s": limits_s,
            "share": found.gaps.share_up_to(limits_s),
            "poisson_share": 1 - np.exp(-limits_s / mean_s) if mean_s > 0 else np.ones_like(limits_s),
            "edges_s": edges_s,
            "requests": found.histogram.astype(np.float64),
        },
    )


def _seconds(joined: Joined) -> Seconds:
    return merged(joined.batches("time_s"), lambda part: Seconds.of(part["time_s"].to_numpy()))


def _by_hour(joined: Joined, seconds: Seconds) -> pl.DataFrame:
    """Requests a second of every hour on the wall: `date`, `weekday` (1 is Monday), `hour`, `rate_per_s`."""
    quarter = np.arange(seconds.first, seconds.first + len(seconds.counts)) + round(joined.start.timestamp())
    slot = quarter // _QUARTER_S
    first = int(slot[0])
    table = pl.DataFrame(
        {
            "time_s": (np.arange(first, int(slot[-1]) + 1) * _QUARTER_S - joined.start.timestamp()),
            "requests": np.bincount(slot - first, weights=seconds.counts),
            "covered_s": np.bincount(slot - first),
        }
    )
    wall = local_time(joined.start)
    hourly = table.group_by(date=wall.dt.date(), hour=wall.dt.hour().cast(pl.Int64)).agg(
        weekday=wall.dt.weekday().first(), requests=pl.col("requests").sum(), covered_s=pl.col("covered_s").sum()
    )
    hourly = hourly.filter(pl.col("covered_s") >= 1800).sort("date", "hour")
    return hourly.with_columns(rate_per_s=pl.col("requests") / pl.col("covered_s"))
