"""How many replicas each hour of the day needs, from the rates of the log and what one replica was seen to serve."""

import datetime

import numpy as np

from nanoserve.analysis.finding import Finding, not_computed

KEY = "recommend.replicas"
_HOURS, _DAY_S, _HOUR_S = 24, 86400.0, 3600.0
_SATURDAY = 5
_BUSY = 0.95  # of the days: the rate that an hour is planned for


def replicas_by_hour(
    arrival_s: np.ndarray, start: datetime.datetime, replica_rps: float, replicas: int, *, dated: bool = True
) -> Finding:
    """Replicas by hour of the day, weekdays and weekends apart.

    Args:
      arrival_s: float [N], seconds from `start`. start: aware; its time zone's hours are meant. A change to or from
        summer time within the log shifts what comes after it by an hour.
      replica_rps: requests per second that one replica serves within the objective.
      replicas: that there are. dated: whether the log says what day it was.
    """
    subject = "Replicas by hour"
    if not dated or not len(arrival_s) or arrival_s[-1] - arrival_s[0] < _DAY_S:
        span_h = (arrival_s[-1] - arrival_s[0]) / _HOUR_S if len(arrival_s) else 0.0
        why = f"the log covers {span_h:.1f} h" if dated else "the log has no dates"
        return not_computed(KEY, subject, f"{why}; a day with dates is needed")
    if replica_rps <= 0:
        return not_computed(KEY, subject, "not even a small part of the load was served within the objective")
    rows, peak = [], 0
    for name, weekend in (("weekday", False), ("weekend", True)):
        rates = _hourly_rps(arrival_s, start, weekend)
        for hour in range(_HOURS) if len(rates) else ():
            busy_rps = float(np.quantile(rates[:, hour], _BUSY))
            needed = max(1, int(np.ceil(busy_rps / replica_rps)))
            peak = max(peak, needed)
            rows.append(
                {
                    "hour": f"{name} {hour:02d}",
                    "mean_rps": float(rates[:, hour].mean()),
                    "busy_rps": busy_rps,
                    "needed": needed,
                }
            )
    return Finding(
        key=KEY,
        title=_title(rows, peak, replicas),
        rows=len(arrival_s),
        values={"replicas": replicas, "replica_rps": replica_rps, "needed_at_peak": peak, "hours": rows},
        because=(
            f"One replica serves {replica_rps:.3g} requests/s with 99% within the objective (by replay of the busiest "
            f"training time, bursts included); each hour is planned for its busiest {_BUSY:.0%} of days.",
        ),
    )


def _hourly_rps(arrival_s: np.ndarray, start: datetime.datetime, weekend: bool) -> np.ndarray:
    """Mean rates, float [days, 24], of whole days of one kind."""
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    local_s = arrival_s + (start - midnight).total_seconds()
    days = int(local_s[-1] // _DAY_S) + 1
    counts = np.bincount((local_s // _HOUR_S).astype(np.int64), minlength=days * _HOURS).reshape(days, _HOURS)
    kind = np.array([(midnight.weekday() + day) % 7 >= _SATURDAY for day in range(days)])
    return counts[kind == weekend] / _HOUR_S


def _title(rows: list[dict], peak: int, replicas: int) -> str:
    least = min(row["needed"] for row in rows)
    if peak > replicas:
        return f"The busiest hour needs {peak} replicas and there are {replicas}"
    if peak < replicas:
        return f"{peak} of the {replicas} replicas are enough in every hour"
    if least < peak:
        return f"The busiest hour needs all {replicas} replicas, the quietest {least}"
    return f"Every hour needs all {replicas} replicas" if replicas > 1 else "One replica is enough in every hour"
