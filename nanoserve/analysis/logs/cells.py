"""Cells of a file as canonical columns: numbers in their canonical units, text without blanks around it.

A cell that is not what its column holds becomes null; how many, and what the first one said, is a note. A duration or
a size whose unit neither name nor caller says is asked for, with the median in every unit that it might be. Next:
`clean`, which rows are set aside.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from nanoserve.analysis.logs import names, schema
from nanoserve.analysis.logs.match import Matched
from nanoserve.analysis.logs.sources import Source
from nanoserve.analysis.logs.times import read_times
from nanoserve.analysis.wording import counted
from nanoserve.specs.errors import ConfigError, TraceError, nearest

STATUS_WORDS = {
    200: ("ok", "success", "succeeded", "completed", "finished", "done", "stop", "length"),
    429: ("refused", "rejected", "throttled", "rate_limited", "overloaded"),
    503: ("oom", "out_of_memory", "outofmemory", "unavailable"),
    504: ("timeout", "timed_out", "deadline_exceeded"),
    500: ("error", "failed", "failure", "internal_error"),
}
"""HTTP status -> words that services write in its place."""

_LEAST_MEMORY_BYTES = 1e9  # no device's memory is a petabyte: such a number is no count of MiB
_MOST_OF_A_SHARE = 1.5  # a share is at most 1, and a little over it where it was estimated; above, it is percent


def canonical(
    source: Source, matched: Matched, units: Mapping[str, str], zone: str | None
) -> tuple[pl.LazyFrame, bool | None, tuple[str, ...]]:
    """A file's table under canonical names, with its times in the column `time_ns`.

    Args:
      source: the file. matched: what its columns are. units: the file's name -> unit, from the caller.
      zone: of dates without one.

    Returns:
      The table; whether its times are dates, None where it has no times; notes.

    Raises:
      TraceError: a unit that has to be asked for. ConfigError: a unit that the column cannot have.
    """
    columns, notes, dated = {}, [], None
    for name, (column, named_unit) in matched.columns.items():
        unit = _unit_of(source, name, column, named_unit, units)
        if name == "time_s":
            times = read_times(source.cells, str(source.path), column, unit, zone)
            columns["time_ns"], dated = times.ns, times.dated
            notes += times.notes
        else:
            columns[name], said = _column(source, matched.log, name, column, unit)
            notes += said
    table = source.cells.select(**columns)
    return table, dated, (*notes, *_unreadable(source, matched, columns))


def _unit_of(source: Source, name: str, column: str, named: str | None, units: Mapping[str, str]) -> str | None:
    """The caller's unit for a column, or the one in its name."""
    unit = units.get(column, named)
    known = names.UNITS.get(names.DIMENSIONS.get(name, ""), {})
    if unit is not None and unit not in known:
        what = f"is no unit of {column}.{nearest(unit, known)}" if known else f"does not apply: {column} is a {name}"
        raise ConfigError(f"units={{'{column}': '{unit}'}}: {unit} {what} ({source.path})")
    return unit


def _column(source: Source, log: str, name: str, column: str, unit: str | None) -> tuple[pl.Expr, list[str]]:
    if name in names.DIMENSIONS:
        return _quantity(source, name, column, unit)
    written = source.cells.collect_schema()[column]
    dtype = _dtype(log, name)
    if name == "status" and not written.is_integer():
        return _status(column), []
    if dtype == pl.String():
        return pl.col(column) if written == pl.String() else pl.col(column).cast(pl.String), []
    if dtype.is_integer():
        return pl.col(column).cast(dtype, strict=False) if written.is_integer() else _whole(column, dtype), []
    return _number(column), []


def _quantity(source: Source, name: str, column: str, unit: str | None) -> tuple[pl.Expr, list[str]]:
    """A number with a unit."""
    dimension, notes = names.DIMENSIONS[name], []
    value = _number(column)
    middle, most = _middle_and_most(source, value) if unit is None or dimension == "share" else (None, None)
    if dimension == "bytes" and unit is None and (middle or 0) >= _LEAST_MEMORY_BYTES:
        unit = "bytes"
        notes.append(f"{column} has no unit in its name; its median, {middle:.3g}, can only be bytes: read as that")
    if dimension == "share" and (most or 0) > _MOST_OF_A_SHARE and unit != "percent":
        unit = "percent"
        notes.append(f"{column} goes up to {most:g}, which no share does: read as percent")
    unit = unit or names.ASSUMED_UNITS.get(name)
    if unit is None:
        if middle is not None:
            raise TraceError(_question(source, column, dimension, middle))
        unit = next(iter(names.UNITS[dimension]))
    return value * names.UNITS[dimension][unit], notes


def _middle_and_most(source: Source, value: pl.Expr) -> tuple[float | None, float | None]:
    asked = source.cells.select(value.median().alias("middle"), value.max().alias("most"))
    return asked.collect(engine="streaming").row(0)


def _question(source: Source, column: str, dimension: str, middle: float) -> str:
    units, print_as = (
        (("s", "ms"), "{:,.4g} s") if dimension == "duration" else (("bytes", "mib", "gib"), "{:,.4g} bytes")
    )
    readings = ", ".join(f"{print_as.format(middle * names.UNITS[dimension][unit])} as {unit}" for unit in units)
    return (
        f"{source.path}: the name of {column} does not say its unit, and nothing here guesses it. Its median, "
        f"{middle:,.6g}, would be {readings}. Say which: units={{'{column}': '{units[1]}'}} "
        f"(--units={column}={units[1]})"
    )


def _number(column: str) -> pl.Expr:
    """A finite number; null where it is none."""
    value = pl.col(column).cast(pl.Float64, strict=False)
    return pl.when(value.is_finite()).then(value)


def _whole(column: str, dtype: pl.DataType) -> pl.Expr:
    """A whole number, also one written as 12.0; null where it is none."""
    value = _number(column)
    return pl.when(value == value.round()).then(value.cast(dtype, strict=False))


def _status(column: str) -> pl.Expr:
    """A number, or the status that a word stands for: by comparisons, which stream, as `replace_strict` does not."""
    text = pl.col(column).cast(pl.String).str.to_lowercase()
    number = text.cast(pl.Float64, strict=False).cast(pl.Int32, strict=False)
    words = [pl.when(text.is_in(words)).then(pl.lit(status, pl.Int32)) for status, words in STATUS_WORDS.items()]
    return pl.coalesce(number, *words)


def _unreadable(source: Source, matched: Matched, columns: Mapping[str, pl.Expr]) -> list[str]:
    """What cells were no values of their column: how many, and the first of each."""
    schema_of = source.cells.collect_schema()
    written = {"time_ns" if name == "time_s" else name: column for name, (column, _) in matched.columns.items()}
    doubtful = {name: column for name, column in written.items() if _may_fail(matched.log, name, schema_of[column])}
    if not doubtful:
        return []
    bad = {name: columns[name].is_null() & pl.col(column).is_not_null() for name, column in doubtful.items()}
    counts = source.cells.select(**{name: test.sum() for name, test in bad.items()}).collect(engine="streaming").row(0)
    notes = []
    for (name, column), count in zip(doubtful.items(), counts, strict=True):
        if count:
            first: Any = source.cells.filter(bad[name]).select(column).head(1).collect().item()
            notes.append(
                f"{counted(count, 'cell')} of {column} cannot be read as {name}; the first is '{str(first)[:60]}'"
            )
    return notes


def _may_fail(log: str, name: str, written: pl.DataType) -> bool:
    """Whether a cell of this type may be no value of the column: any text may, but not as text."""
    if name != "time_ns" and _dtype(log, name) == pl.String():
        return False
    return not (written.is_integer() or written.is_temporal())


def _dtype(log: str, name: str) -> pl.DataType:
    """What a column of a log holds; replicas are names until those of all logs are known."""
    if name == "replica":
        return pl.String()
    companions = schema.APP_COLUMNS | schema.ERROR_COLUMNS  # that an api log may carry
    return (companions | schema.COLUMNS[log])[name][0]
