"""Times of a log, however written, as whole nanoseconds since 1970 in UTC, or since the file's own zero.

A date with an offset is exact. A date without one is UTC, or of the time zone that the caller names; a time that its
clocks skipped is moved on by what they skipped, one that they showed twice is the first of the two, and both are
counted. A number is in the unit that its name or the caller says; only where its size leaves one choice (1.7e12 is
milliseconds since 1970, or the year 55,840) is the unit taken from that, and said. Next: `cells`, the other columns.
"""

import dataclasses
from typing import NoReturn

import polars as pl

from nanoserve.analysis.logs.names import TIME_UNITS
from nanoserve.analysis.wording import counted
from nanoserve.specs.errors import TraceError

_NS = 10**9
_EPOCH_FROM_S = 1e8
"""Seconds from here on (March 1973) are dates; below they count from a zero of the file's own."""
_LARGEST_NS = 9.2e18
_SKIP = "3h"  # longer than any clock has skipped at once, shorter than the time between two changes
_OFFSET = r"\s*(Z|UTC|[+-]\d{2}:?\d{2})$"
_FORMAT = "%Y-%m-%d %H:%M:%S%.f"


@dataclasses.dataclass(frozen=True)
class Times:
    """How a column of times is read.

    Attributes:
      ns: an expression, Int64; null where a cell is no time.
      dated: whether they are dates, not seconds from a zero of the file's own.
      notes: what had to be assumed or was found.
    """

    ns: pl.Expr
    dated: bool
    notes: tuple[str, ...] = ()


def read_times(cells: pl.LazyFrame, path: str, name: str, unit: str | None, zone: str | None) -> Times:
    """Finds out how a column's times are written.

    Args:
      cells: the table. path: for messages. name: the column, as the file has it.
      unit: of numbers, where the name or the caller says it. zone: of dates without an offset; None means UTC.

    Raises:
      TraceError: numbers whose unit cannot be known, or no cell that is a time.
    """
    dtype = cells.collect_schema()[name]
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return Times(_physical_ns(pl.col(name)), dated=True)
    if dtype.is_temporal():
        return _wall_times(cells, name, pl.col(name).cast(pl.Datetime("ns")), zone)
    first = cells.select(pl.col(name)).drop_nulls().head(1000).collect()[name]
    if not len(first):
        raise TraceError(f"{path}: {name} is empty in every row: without times there is nothing to analyse")
    if dtype.is_numeric() or first.cast(pl.Float64, strict=False).null_count() * 2 < len(first):
        return _numbers(cells, path, name, unit)
    return _written(cells, path, name, first, zone)


def _written(cells: pl.LazyFrame, path: str, name: str, first: pl.Series, zone: str | None) -> Times:
    """Dates as text; offsets may differ from row to row, as they do over a change to daylight saving."""
    text = pl.col(name)
    offset = text.str.extract(_OFFSET)
    wall = text.str.replace(_OFFSET, "").str.replace("T", " ", literal=True)
    wall = pl.coalesce(
        wall.str.to_datetime(_FORMAT, time_unit="ns", strict=False),
        wall.str.to_datetime("%Y-%m-%d %H:%M", time_unit="ns", strict=False),
    )
    if not first.to_frame().select(wall.is_not_null().any()).item():
        raise TraceError(f"{path}: {name} is '{first[0][:60]}'; wanted a number or a date: 2026-03-01 18:15:46.68Z")
    if first.to_frame().select(offset.is_null().any()).item():
        naive = _wall_times(cells, name, wall, zone)
        exact = _physical_ns(wall) - _offset_ns(offset)
        return dataclasses.replace(naive, ns=pl.when(offset.is_null()).then(naive.ns).otherwise(exact))
    return Times(_physical_ns(wall) - _offset_ns(offset), dated=True)


def _offset_ns(offset: pl.Expr) -> pl.Expr:
    """`+05:30` in nanoseconds; 0 for Z, UTC and nothing."""
    hours = offset.str.slice(1, 2).cast(pl.Int64, strict=False).fill_null(0)
    minutes = offset.str.slice(-2).cast(pl.Int64, strict=False).fill_null(0)
    sign = pl.when(offset.str.starts_with("-")).then(-1).otherwise(1)
    return sign * (hours * 3600 + minutes * 60) * _NS


def _wall_times(cells: pl.LazyFrame, name: str, wall: pl.Expr, zone: str | None) -> Times:
    """Dates without an offset, as a zone's clocks showed them."""
    if zone in (None, "UTC"):
        said = "as was asked" if zone else "another is named with time_zone, or --time_zone"
        return Times(_physical_ns(wall), dated=True, notes=(f"{name} has no time zone: read as UTC ({said})",))

    def localized(time: pl.Expr, ambiguous: str) -> pl.Expr:
        return time.dt.replace_time_zone(zone, ambiguous=ambiguous, non_existent="null")  # type: ignore[arg-type]

    there = localized(wall, "earliest")
    moved = localized(wall.dt.offset_by(f"-{_SKIP}"), "earliest").dt.convert_time_zone("UTC").dt.offset_by(_SKIP)
    first_pass, second_pass = _physical_ns(there), _physical_ns(localized(wall, "latest"))
    skipped, twice = (
        cells.select((there.is_null() & wall.is_not_null()).sum(), (first_pass != second_pass).sum().alias("twice"))
        .collect(engine="streaming")
        .row(0)
    )
    notes = [f"{name} has no time zone: read as {zone}"]
    if skipped:
        notes.append(
            f"{counted(skipped, 'time')} of {name} in an hour that {zone} skipped: moved on by what was skipped"
        )
    if twice:
        notes.append(
            f"{counted(twice, 'time')} of {name} in an hour that {zone} had twice: read as the first of the two"
        )
    return Times(pl.coalesce(first_pass, _physical_ns(moved)), dated=True, notes=tuple(notes))


def _numbers(cells: pl.LazyFrame, path: str, name: str, unit: str | None) -> Times:
    value = pl.col(name).cast(pl.Float64, strict=False)
    low, middle, high = (
        cells.select(value.min().alias("low"), value.median().alias("middle"), value.max().alias("high"))
        .collect(engine="streaming")
        .row(0)
    )
    notes = []
    if unit is None:
        unit = _unit_of_size(middle)
        if unit is None:
            _ask(path, name, low, high)
        notes.append(f"{name} holds numbers near {middle:.4g}, which can only be {unit} since 1970: read as that")
    per_unit = TIME_UNITS[unit] * _NS
    whole = pl.col(name).cast(pl.Int64, strict=False) * round(per_unit)
    exact = whole if per_unit >= 1 else value * per_unit
    near = (value * per_unit).round().cast(pl.Int64, strict=False)
    fraction = value != value.round()
    ns = pl.when((value * per_unit).abs() < _LARGEST_NS).then(pl.when(fraction).then(near).otherwise(exact))
    return Times(ns, dated=middle * TIME_UNITS[unit] >= _EPOCH_FROM_S, notes=tuple(notes))


def _unit_of_size(middle: float) -> str | None:
    """The one unit in which a number is a date of these decades; None where it is none."""
    fits = [unit for unit in ("s", "ms", "us", "ns") if _EPOCH_FROM_S <= middle * TIME_UNITS[unit] < 1e10]
    return fits[0] if len(fits) == 1 else None


def _ask(path: str, name: str, low: float, high: float) -> NoReturn:
    spans = ", ".join(f"{_span((high - low) * TIME_UNITS[unit])} as {unit}" for unit in ("s", "ms", "us"))
    raise TraceError(
        f"{path}: {name} holds numbers from {low:,.6g} to {high:,.6g}, and its name does not say in what unit: the "
        f"file spans {spans}. Say which: units={{'{name}': 's'}} (--units={name}=s)"
    )


def _span(seconds: float) -> str:
    for name, size in (("days", 86400.0), ("h", 3600.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"


def _physical_ns(time: pl.Expr) -> pl.Expr:
    """Nanoseconds since 1970; of a time without a zone, as if it were UTC."""
    return time.dt.timestamp("ns")
