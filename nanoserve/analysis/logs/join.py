"""One table of requests from the four logs, and how many rows of each found their like.

Invariants: the table has every row of the api log, once; every row of the other logs is counted as matched, further
(another row of a request that has one already), without an id, or unmatched, and the counts add up. Errors join on the
request id; the application's entries too, or on the session where they name no request; telemetry on the bucket in
which the request arrived, of its replica where both say which. Next: `anatomy`, what is made of the table.
"""

from collections.abc import Mapping, Sequence

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
    scratch = logs.scratch or Scratch()
    rows = logs.counts["api_kept"] if "api_kept" in logs.counts else count(logs.api)
    table, found = logs.api, {}
    if logs.app is not None:
        table, found["app"] = _with_app(table, logs.api, logs.app, scratch)
    if logs.errors is not None:
        table, found["errors"] = _with_errors(table, logs.api, logs.errors, scratch)
    if logs.telemetry is not None:
        table = _with_telemetry(table, logs.telemetry)
    if table is not logs.api:
        table = scratch.settled(table, rows)
    if logs.telemetry is not None:
        found["telemetry"] = _buckets_found(table, rows, logs.telemetry)
    return Joined(
        logs=logs,
        table=table,
        rows=rows,
        columns=frozenset(table.collect_schema().names()),
        counts={**logs.counts, **{f"{log}_{what}": n for log, counts in found.items() for what, n in counts.items()}},
        notes=(*logs.notes, *(_sentence(log, counts) for log, counts in found.items())),
    )


def _sentence(log: str, counts: Mapping[str, int]) -> str:
    said = ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in counts.items() if number)
    return f"{log} log joined: {said or 'it is empty'}"


def _with_app(
    table: pl.LazyFrame, api: pl.LazyFrame, app: pl.LazyFrame, scratch: Scratch
) -> tuple[pl.LazyFrame, dict[str, int]]:
    ours, theirs = api.collect_schema().names(), app.collect_schema().names()
    if "request_id" in ours and "request_id" in theirs:
        keys = ["request_id"]
    else:
        keys = [name for name in _SESSION_KEYS if name in ours and name in theirs]
    more = [name for name in schema.APP_COLUMNS if name in theirs and name not in (*ours, "time_s", *keys)]
    return _joined(table, api, app, keys, more, scratch)


def _with_errors(
    table: pl.LazyFrame, api: pl.LazyFrame, errors: pl.LazyFrame, scratch: Scratch
) -> tuple[pl.LazyFrame, dict[str, int]]:
    ours, theirs = api.collect_schema().names(), errors.collect_schema().names()
    keys = [name for name in ("request_id",) if name in ours and name in theirs]
    errors = errors.rename({"time_s": "error_time_s"})
    more = [name for name in _ERROR_COLUMNS if name in errors.collect_schema().names() and name not in ours]
    return _joined(table, api, errors, keys, more, scratch)


def _joined(
    table: pl.LazyFrame, api: pl.LazyFrame, other: pl.LazyFrame, keys: list[str], more: Sequence[str], scratch: Scratch
) -> tuple[pl.LazyFrame, dict[str, int]]:
    """Adds columns of the first row of another log that has a request's keys; counts both sides.

    Args:
      table: to add them to. api: its requests, as they were read. other: the log. keys: that both have.
      more: columns to add. scratch: for what does not fit in memory.
    """
    rows, requests = count(other), count(api)
    if not keys:
        return table, {"rows_matched": 0, "rows_unmatched": rows, "requests_without": requests}
    named = other.filter(pl.all_horizontal(pl.col(key).is_not_null() for key in keys)).select(*keys, *more)
    known = scratch.settled(named.join(api, on=keys, how="semi", maintain_order="left"), rows)
    first = scratch.settled(known.unique(keys, keep="first", maintain_order=True), rows)
    with_keys, matched, used = count(named), count(known), count(first)
    served = count(api.join(first, on=keys, how="semi"))
    return table.join(first, on=keys, how="left", maintain_order="left"), {
        "rows_matched": used,
        "rows_further": matched - used,
        "rows_unmatched": with_keys - matched,
        "rows_without_id": rows - with_keys,
        "requests_matched": served,
        "requests_without": requests - served,
    }


def _with_telemetry(table: pl.LazyFrame, telemetry: pl.LazyFrame) -> pl.LazyFrame:
    """Adds the bucket whose middle is nearest to the arrival, if it is not a whole bucket away.

    Where requests do not say their replica, a bucket is the mean over all of them.
    """
    by = _shared_replica(table, telemetry)
    width_s = bucket_width_s(telemetry)
    values = [name for name in telemetry.collect_schema().names() if name not in ("time_s", "replica")]
    buckets = telemetry.group_by(*by, "time_s").agg(pl.col(values).mean()).sort("time_s")
    renamed = [pl.col(name).alias(f"bucket_{name}") for name in ("time_s", *values)]
    return table.join_asof(
        buckets.select(*by, *renamed, middle_s=pl.col("time_s") + width_s / 2),
        left_on="time_s",
        right_on="middle_s",
        by=by or None,
        strategy="nearest",
        tolerance=width_s,
        check_sortedness=False,  # both are in order of time, which the check cannot see within groups
    ).drop("middle_s", strict=False)


def _buckets_found(table: pl.LazyFrame, rows: int, telemetry: pl.LazyFrame) -> dict[str, int]:
    """How many requests have a bucket, and how many buckets have requests."""
    by = _shared_replica(table, telemetry)
    hit = table.filter(pl.col("bucket_time_s").is_not_null())
    used = count(telemetry.join(hit, left_on=[*by, "time_s"], right_on=[*by, "bucket_time_s"], how="semi"))
    served = count(hit)
    return {
        "buckets_matched": used,
        "buckets_without": count(telemetry) - used,
        "requests_matched": served,
        "requests_without": rows - served,
    }


def _shared_replica(table: pl.LazyFrame, telemetry: pl.LazyFrame) -> list[str]:
    """The column of replicas, if both have it."""
    return ["replica"] if all("replica" in side.collect_schema().names() for side in (table, telemetry)) else []


def bucket_width_s(telemetry: pl.LazyFrame) -> float:
    """Seconds from one bucket to the next; a minute, which is the custom, where there is only one."""
    times = telemetry.select(pl.col("time_s").unique().sort()).collect(engine="streaming")["time_s"]
    return float(np.median(np.diff(times.to_numpy()))) if len(times) > 1 else 60.0
