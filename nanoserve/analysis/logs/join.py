"""One table of requests from the four logs, and how many rows of each found their like.

Invariants: the table has every row of the api log, once; every row of the other logs is counted as matched, further
(another row of a request that has one already), without an id, or unmatched, and the counts add up. Errors join on the
request id; the application's entries too, or on the session where they name no request; telemetry on the bucket in
which the request arrived, of its replica where both say which. Next: `anatomy`, what is made of the table.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from nanoserve.analysis.logs import schema
from nanoserve.analysis.logs.log_set import Joined, LogSet
from nanoserve.analysis.logs.scratch import Scratch, count

_ERROR_COLUMNS = ("error_type", "traceback", "error_time_s")
_SESSION_KEYS = ("session_id", "turn")


def join(logs: LogSet) -> Joined:
    """Joins the logs of a service.

    Args:
      logs: read and cleaned.

    Returns:
      One row a request, sorted by time.
    """
    table, counts, notes = logs.api, dict(logs.counts), list(logs.notes)
    rows = counts["api_kept"] if "api_kept" in counts else count(logs.api)
    for name, joiner in (("app", _with_app), ("errors", _with_errors), ("telemetry", _with_telemetry)):
        other = getattr(logs, name)
        if other is not None:
            table, found = joiner(table, other)
            counts |= {f"{name}_{what}": number for what, number in found.items()}
            said = ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in found.items() if number)
            notes.append(f"{name} log joined: {said or 'it is empty'}")
    joined = logs.app is not None or logs.errors is not None or logs.telemetry is not None
    if joined:
        table = (logs.scratch or Scratch()).settled(table, rows)
    columns = frozenset(table.collect_schema().names())
    return Joined(logs=logs, table=table, rows=rows, columns=columns, counts=counts, notes=tuple(notes))


def _with_app(table: pl.LazyFrame, app: pl.LazyFrame) -> tuple[pl.LazyFrame, dict[str, int]]:
    ours, theirs = table.collect_schema().names(), app.collect_schema().names()
    if "request_id" in ours and "request_id" in theirs:
        keys = ["request_id"]
    else:
        keys = [name for name in _SESSION_KEYS if name in ours and name in theirs]
    more = [name for name in schema.APP_COLUMNS if name in theirs and name not in (*ours, "time_s", *keys)]
    return _joined(table, app, keys, more)


def _with_errors(table: pl.LazyFrame, errors: pl.LazyFrame) -> tuple[pl.LazyFrame, dict[str, int]]:
    ours, theirs = table.collect_schema().names(), errors.collect_schema().names()
    keys = [name for name in ("request_id",) if name in ours and name in theirs]
    errors = errors.rename({"time_s": "error_time_s"})
    more = [name for name in _ERROR_COLUMNS if name in errors.collect_schema().names() and name not in ours]
    return _joined(table, errors, keys, more)


def _joined(
    table: pl.LazyFrame, other: pl.LazyFrame, keys: list[str], more: Sequence[str]
) -> tuple[pl.LazyFrame, dict[str, int]]:
    """Adds columns of the first row of another log that has a request's keys; counts both sides."""
    rows, requests = count(other), count(table)
    if not keys:
        return table, {"rows_matched": 0, "rows_unmatched": rows, "requests_without": requests}
    named = other.filter(pl.all_horizontal(pl.col(key).is_not_null() for key in keys))
    known = named.join(table.select(keys).unique(), on=keys, how="semi", maintain_order="left")
    first = known.unique(keys, keep="first", maintain_order=True).select(*keys, *more)
    with_keys, matched, used = count(named), count(known), count(first)
    served = count(table.join(first, on=keys, how="semi"))
    return table.join(first, on=keys, how="left", maintain_order="left"), {
        "rows_matched": used,
        "rows_further": matched - used,
        "rows_unmatched": with_keys - matched,
        "rows_without_id": rows - with_keys,
        "requests_matched": served,
        "requests_without": requests - served,
    }


def _with_telemetry(table: pl.LazyFrame, telemetry: pl.LazyFrame) -> tuple[pl.LazyFrame, dict[str, int]]:
    """The bucket whose middle is nearest to the arrival, if it is not a whole bucket away.

    Where requests do not say their replica, a bucket is the mean over all of them.
    """
    ours, theirs = table.collect_schema().names(), telemetry.collect_schema().names()
    by = [name for name in ("replica",) if name in ours and name in theirs]
    width_s = bucket_width_s(telemetry)
    values = [name for name in theirs if name not in ("time_s", "replica")]
    buckets = telemetry.group_by(*by, "time_s").agg(pl.col(values).mean()).sort("time_s")
    buckets = buckets.select(
        *by,
        *(pl.col(name).alias(f"bucket_{name}") for name in ("time_s", *values)),
        middle_s=pl.col("time_s") + width_s / 2,
    )
    near = table.join_asof(
        buckets,
        left_on="time_s",
        right_on="middle_s",
        by=by or None,
        strategy="nearest",
        tolerance=width_s,
        check_sortedness=False,  # both are in order of time, which the check cannot see within groups
    ).drop("middle_s", strict=False)
    hit = near.filter(pl.col("bucket_time_s").is_not_null())
    used = count(telemetry.join(hit, left_on=[*by, "time_s"], right_on=[*by, "bucket_time_s"], how="semi"))
    served = count(hit)
    return near, {
        "buckets_matched": used,
        "buckets_without": count(telemetry) - used,
        "requests_matched": served,
        "requests_without": count(table) - served,
    }


def bucket_width_s(telemetry: pl.LazyFrame) -> float:
    """Seconds from one bucket to the next; a minute, which is the custom, where there is only one."""
    times = telemetry.select(pl.col("time_s").unique().sort()).collect(engine="streaming")["time_s"]
    return float(np.median(np.diff(times.to_numpy()))) if len(times) > 1 else 60.0
