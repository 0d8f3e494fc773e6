"""Control charts of latency: does the p95 of a service leave its usual range, and since when.

The p95 of each stretch of time is compared with what is usual at its hour of the day: logarithms, less the median of
that hour over the days, over a robust spread. Shewhart's chart flags single stretches beyond 3 sigma; EWMA flags small
lasting shifts; CUSUM sums what exceeds half a sigma, and where its sum was last zero before the alarm is when the
change began. Charts assume that one stretch says nothing of the next, which traffic does not keep: so a few alarms are
usual, and the change is tested by itself, against the same series with its six-hour blocks in random order.

Series of `failures.control.p95`: `time_s` (middle of a stretch), `p95_s`, `usual_s`, `score` (sigmas), `ewma`,
`cusum`, `alarm` (0 or 1). Source: Montgomery, "Introduction to Statistical Quality Control", chapters 6 and 9; the
parameters below are his. Next: `leak`.
"""

import dataclasses
import math

import numpy as np
import polars as pl

from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.service import DAY_S, HOUR_S, Service

KEY = "failures.control.p95"
SHEWHART_SIGMAS = 3.0
EWMA_WEIGHT, EWMA_SIGMAS = 0.2, 2.86
CUSUM_SLACK, CUSUM_LIMIT = 0.5, 5.0
_LEAST_ROWS = 20  # fewer requests have no p95
_LEAST_STRETCHES = 12
_MOST_STRETCHES = 500
_ROBUST = 1.4826  # of the median absolute deviation, for a normal spread
_SHUFFLES = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Charts:
    """The three charts of one series of scores; arrays are [M].

    Attributes:
      shewhart, ewma, cusum: which stretches are beyond each chart's limit. ewma_level, cusum_level: what is charted.
      began: the stretch at which the first change that CUSUM flagged began; None where it flagged none.
    """

    shewhart: np.ndarray
    ewma: np.ndarray
    cusum: np.ndarray
    ewma_level: np.ndarray
    cusum_level: np.ndarray
    began: int | None


def charts(score: np.ndarray) -> Charts:
    """Charts a series that is centred on 0 with unit spread while all is usual.

    Args:
      score: float [M], in sigmas; upward is worse, and only that is flagged.
    """
    level, cusum = np.zeros(len(score)), np.zeros(len(score))
    mean = total = 0.0
    for place, value in enumerate(score):
        mean = level[place] = EWMA_WEIGHT * value + (1 - EWMA_WEIGHT) * mean
        total = cusum[place] = max(0.0, total + value - CUSUM_SLACK)
    ages = np.arange(1, len(score) + 1)
    spread = np.sqrt(EWMA_WEIGHT / (2 - EWMA_WEIGHT) * (1 - (1 - EWMA_WEIGHT) ** (2 * ages)))
    flagged = cusum > CUSUM_LIMIT
    began = None
    if flagged.any():
        calm = np.flatnonzero(cusum[: int(np.argmax(flagged))] == 0)
        began = int(calm[-1]) + 1 if len(calm) else 0
    return Charts(
        shewhart=score > SHEWHART_SIGMAS,
        ewma=level > EWMA_SIGMAS * spread,
        cusum=flagged,
        ewma_level=level,
        cusum_level=cusum,
        began=began,
    )


def change_point(score: np.ndarray, block: int, seed: int = 0) -> tuple[int, float, float]:
    """Where a series splits best into two levels, and how often chance does as well.

    Args:
      score: float [M]. block: stretches that are shuffled together, because neighbours are alike.
      seed: of the shuffles.

    Returns:
      The first stretch of the second level, second level less first, and the share of shuffles that split as well.
    """
    place, gain = _best_split(score)
    rng = np.random.default_rng(seed)
    blocks = np.array_split(score, max(2, round(len(score) / block)))
    shuffled = (np.concatenate([blocks[i] for i in rng.permutation(len(blocks))]) for _ in range(_SHUFFLES))
    as_good = sum(_best_split(series)[1] >= gain for series in shuffled)
    return place, float(score[place:].mean() - score[:place].mean()), (as_good + 1) / (_SHUFFLES + 1)


def _best_split(score: np.ndarray) -> tuple[int, float]:
    """The split that explains most of the variance, and how much of its sum of squares that is."""
    first = np.arange(1, len(score))
    total = np.cumsum(score)
    left, right = total[:-1] / first, (total[-1] - total[:-1]) / (len(score) - first)
    gain = first * (len(score) - first) / len(score) * (left - right) ** 2
    return int(np.argmax(gain)) + 1, float(gain.max())


def p95_by_stretch(service: Service, stretch_s: float) -> pl.DataFrame:
    """The p95 of latency of served requests in stretches of time that have enough of them.

    Returns:
      `stretch` (its number), `p95_s`, `requests`, by stretch.
    """
    served = service.requests.lazy().filter(pl.lit(~service.failed))
    stretch = (pl.col("time_s") / stretch_s).floor().cast(pl.Int64).alias("stretch")
    found = served.group_by(stretch).agg(pl.col("latency_s").quantile(0.95).alias("p95_s"), pl.len().alias("requests"))
    return found.filter(pl.col("requests") >= _LEAST_ROWS, pl.col("p95_s") > 0).sort("stretch").collect()


def latency_charts(loss: Loss) -> Finding:
    """Charts the p95 latency of a service and dates its change.

    Args:
      loss: of the service.

    Returns:
      `failures.control.p95`; rows are served requests.
    """
    service = loss.service
    if not service.has("latency_s"):
        return not_computed(KEY, "Control charts of p95 latency", "the log has no latency")
    stretch_s = _stretch_s(loss.start_s)
    table = p95_by_stretch(service, stretch_s)
    if table.height < _LEAST_STRETCHES:
        why = f"{table.height} stretches of {stretch_s / 60:g} minutes have {_LEAST_ROWS} served requests each"
        return not_computed(KEY, "Control charts of p95 latency", f"{why}; {_LEAST_STRETCHES} are needed")
    middle_s = (table["stretch"].to_numpy() + 0.5) * stretch_s
    logs = np.log(table["p95_s"].to_numpy())
    usual = _usual(logs, service, middle_s)
    spread = _ROBUST * float(np.median(np.abs(logs - usual - np.median(logs - usual)))) or 1.0
    score = (logs - usual) / spread
    found, (place, shift, chance) = charts(score), change_point(score, max(1, round(6 * HOUR_S / stretch_s)))
    return Finding(
        key=KEY,
        title=_title(middle_s[place], shift * spread, chance),
        rows=int(table["requests"].sum()),
        values={
            "stretch_s": stretch_s,
            "stretches": table.height,
            "shewhart_alarms": int(found.shewhart.sum()),
            "ewma_alarms": int(found.ewma.sum()),
            "cusum_alarms": int(found.cusum.sum()),
            "cusum_began_s": None if found.began is None else float(middle_s[found.began]),
            "change_s": float(middle_s[place]),
            "change_factor": float(np.exp(shift * spread)),
            "change_p_value": chance,
        },
        series={
            "time_s": middle_s,
            "p95_s": np.exp(logs),
            "usual_s": np.exp(usual),
            "score": score,
            "ewma": found.ewma_level,
            "cusum": found.cusum_level,
            "alarm": (found.shewhart | found.ewma | found.cusum).astype(np.int64),
        },
        because=_because(found, table.height, chance),
    )


def _stretch_s(start_s: np.ndarray) -> float:
    """Ten minutes, or longer where that would be more stretches than a chart can show or too few requests in each."""
    span_s = float(np.ptp(start_s)) if len(start_s) else 0.0
    enough = span_s * 2 * _LEAST_ROWS / max(len(start_s), 1)
    return max(600.0, 600.0 * math.ceil(max(span_s / _MOST_STRETCHES, enough) / 600.0))


def _usual(logs: np.ndarray, service: Service, middle_s: np.ndarray) -> np.ndarray:
    """The median of the hour of the day over the days; of everything where there are fewer than three days."""
    usual = np.full(len(logs), np.median(logs))
    if service.dated and np.ptp(middle_s) >= 3 * DAY_S:
        hours = service.hours(middle_s)
        for hour in np.unique(hours):
            usual[hours == hour] = np.median(logs[hours == hour])
    return usual


def _title(change_s: float, shift: float, chance: float) -> str:
    if chance > 0.05 or shift <= 0:
        return "p95 latency, by the hour of the day, has no lasting rise"
    return (
        f"p95 latency rose by {np.expm1(shift):.0%} on day {change_s / DAY_S + 1:.1f}, the hour of the day allowed for"
    )


def _because(found: Charts, stretches: int, chance: float) -> tuple[str, ...]:
    return (
        f"Of {stretches} stretches, Shewhart flags {int(found.shewhart.sum())} (beyond 3 sigma), EWMA "
        f"{int(found.ewma.sum())}, CUSUM {int(found.cusum.sum())}.",
        f"The best split into two levels is matched by {chance:.1%} of shuffles of six-hour blocks.",
    )
