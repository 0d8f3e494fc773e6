"""Which rows of a log are set aside, and why; the rest in order of time.

Invariant: rows read = rows kept + rows set aside, by reason, in `Cleaned.counts`. A row is set aside for one reason,
the first of: a cell that it needs cannot be read (`unreadable`); its time is more than a year from the middle row's
(`far`: a clock that was never set); a latency is negative (`negative`); an equal row is kept (`identical`); another row
with its id is kept (`conflicting`). Of rows that share an id the earliest is kept, and of those at one time the one
whose cells sort first: the order of rows in a file decides nothing. Next: `clocks`.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import polars as pl

from nanoserve.analysis.logs import schema
from nanoserve.analysis.logs.scratch import Scratch
from nanoserve.analysis.wording import counted
from nanoserve.trace.types import MAX_TOKENS

_IDENTITY = {
    "api": ("request_id",),
    "app": ("request_id",),
    "telemetry": ("time_ns", "replica"),
    "errors": ("time_ns", "request_id", "error_type", "traceback"),
}
"""Log -> what no two of its rows share. Without request ids two equal rows may well be two requests."""

_ROW = "row of the log"
_YEAR_NS = 366 * 86_400 * 10**9
_WHY = {
    "unreadable": "without a readable {needed}",
    "far": "with a time more than a year from that of the middle row",
    "negative": "with a negative latency",
    "identical": "as equal to another",
    "conflicting": "with the id of another, but not its content (the earliest is kept)",
}


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """A log's rows that are kept, by time, and what became of all of them.

    Attributes:
      table: with times in `time_ns`. rows: of it.
      counts: `read`, `kept` and, for reasons that occurred, `set_aside_REASON`. notes: the same in sentences.
    """

    table: pl.LazyFrame
    rows: int
    counts: Mapping[str, int]
    notes: tuple[str, ...]


def clean(log: str, table: pl.LazyFrame, scratch: Scratch) -> Cleaned:
    """Sets rows aside and sorts the rest.

    Args:
      log: which. table: canonical, times in `time_ns`. scratch: for tables that do not fit in memory.
    """
    present = table.collect_schema().names()
    if log == "api":
        table = _without_answer(table, present)
    reason = _reason(log, present, _middle_ns(table, present))
    by_reason = dict(table.group_by(reason.alias("reason")).len().collect(engine="streaming").iter_rows())
    read = sum(by_reason.values())
    by_reason.pop("", None)
    if by_reason:
        table = table.filter(reason == "")
    repeated = _repeated(table, [name for name in _IDENTITY[log] if name in present])
    if repeated:
        rows = pl.Series([row for dropped in repeated.values() for row in dropped], dtype=pl.UInt32)
        table = table.with_row_index(_ROW).filter(~pl.col(_ROW).is_in(rows.implode())).drop(_ROW)
    by_reason |= {name: len(dropped) for name, dropped in repeated.items()}
    rows = read - sum(by_reason.values())
    if by_reason:
        table = scratch.settled(table, rows)  # so that no batch of it has to begin at the file's first row
    table, unsorted = _in_order(table, present, rows, scratch)
    counts = {"read": read, "kept": rows, **{f"set_aside_{name}": number for name, number in by_reason.items()}}
    return Cleaned(table, rows, counts, (*_notes(log, by_reason), *unsorted))


def _without_answer(table: pl.LazyFrame, present: list[str]) -> pl.LazyFrame:
    """A failed request's empty answer has 0 tokens."""
    if "status" not in present:
        return table
    failed = pl.col("response_tokens").is_null() & (pl.col("status") >= 400)
    return table.with_columns(response_tokens=pl.when(failed).then(0).otherwise(pl.col("response_tokens")))


def _middle_ns(table: pl.LazyFrame, present: list[str]) -> int | None:
    """The middle row's time."""
    if "time_ns" not in present:
        return None
    middle = table.select(pl.col("time_ns").quantile(0.5, "lower")).collect(engine="streaming").item()
    return None if middle is None else int(middle)


def _reason(log: str, present: list[str], middle_ns: int | None) -> pl.Expr:
    """Why a row is set aside for its own sake; an empty text where it is not."""
    needed = [name for name in ("time_ns", *schema.REQUIRED[log]) if name in present]
    bad = pl.any_horizontal(pl.col(name).is_null() for name in needed)
    for name in ("prompt_tokens", "response_tokens"):
        if name in needed:
            bad |= ~pl.col(name).is_between(0, MAX_TOKENS)
    negative = pl.any_horizontal(pl.lit(False), *(pl.col(x) < 0 for x in ("latency_s", "ttft_s") if x in present))
    far = pl.lit(False) if middle_ns is None else (pl.col("time_ns") - middle_ns).abs() > _YEAR_NS
    reasons = pl.when(bad).then(pl.lit("unreadable")).when(far).then(pl.lit("far"))
    # A comparison with null is null, and so is any_horizontal of it: neither is a reason.
    return reasons.when(negative).then(pl.lit("negative")).otherwise(pl.lit(""))


def _repeated(table: pl.LazyFrame, identity: list[str]) -> dict[str, list[int]]:
    """Rows that repeat another, by whether they are equal to it: `identical` or `conflicting`.

    Two rows are compared only where hashes of their identities meet, so that 8 bytes a row are in memory. Rows without
    a request id are nobody's double.
    """
    if not identity:
        return {}
    content = table.collect_schema().names()
    named = pl.col("request_id").is_not_null() if identity == ["request_id"] else pl.lit(True)
    key = pl.struct(identity).hash()
    hashes = np.sort(table.filter(named).select(key).collect(engine="streaming").to_series().to_numpy())
    shared = pl.Series(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
    if not len(shared):
        return {}
    suspects = table.with_row_index(_ROW).filter(named & key.is_in(shared.implode())).collect(engine="streaming")
    by_time = [name for name in ("time_ns",) if name in content]
    suspects = suspects.sort([*identity, *by_time, *content, _ROW], nulls_last=True)
    kept = [pl.col(name).first().over(identity) for name in content]
    suspects = suspects.with_columns(
        later=pl.int_range(pl.len()).over(identity) > 0,
        equal=pl.all_horizontal(pl.col(name).eq_missing(first) for name, first in zip(content, kept, strict=True)),
    ).filter("later")
    rows = {
        "identical": suspects.filter("equal")[_ROW].to_list(),
        "conflicting": suspects.filter(~pl.col("equal"))[_ROW].to_list(),
    }
    return {name: numbers for name, numbers in rows.items() if numbers}


def _in_order(table: pl.LazyFrame, present: list[str], rows: int, scratch: Scratch) -> tuple[pl.LazyFrame, list[str]]:
    """The table by time, and a note if it was not."""
    if "time_ns" not in present:
        return table, []
    times = table.select("time_ns").collect(engine="streaming").to_series().to_numpy()
    late = int(np.count_nonzero(np.diff(times) < 0))
    if not late:
        return table, []
    ordered = scratch.sorted_by(scratch.settled(table, rows), "time_ns", rows)
    return ordered, [f"not in order of time: {counted(late, 'row')} earlier than the row above; sorted"]


def _notes(log: str, by_reason: Mapping[str, int]) -> list[str]:
    needed = " or ".join(schema.REQUIRED[log])
    return [
        f"{counted(number, 'row')} set aside {_WHY[reason].format(needed=needed)}"
        for reason, number in by_reason.items()
    ]
