"""Logs in: `open_logs` finds out what each file is, reads it, cleans it and lays all of them on one clock.

Files are told apart by their columns, never by their names; several of one kind are one log (yesterday's and today's).
Nothing of a large file is kept in memory: text is turned into Parquet once, and Parquet is read where it lies. Next:
`join`, one table of all of them; `sources`, `match`, `cells` and `clean`, the steps in order.
"""

import dataclasses
import datetime
import zoneinfo
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from nanoserve.analysis.logs import cells, clean, clocks, plausible, run_folders, schema, sources, traces
from nanoserve.analysis.logs.log_set import LogSet
from nanoserve.analysis.logs.match import match
from nanoserve.analysis.logs.scratch import Scratch
from nanoserve.specs.errors import ConfigError, TraceError, nearest
from nanoserve.trace.types import Trace

_BYTES_A_ROW = 32  # fewer than any row of text that says anything: a bound on how many rows a file has


@dataclasses.dataclass(frozen=True)
class _File:
    """A file that was read: which log it is part of, its canonical table, whether its times are dates, and notes.

    `dated` is None where it has no times. `columns` are the file's own names, `latency` that of its latencies; `trace`
    is there where the file is one.
    """

    path: Path
    log: str
    table: pl.LazyFrame
    dated: bool | None
    notes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    latency: str | None = None
    trace: Trace | None = None


def open_logs(
    paths: Sequence[str | Path],
    *,
    units: Mapping[str, str] | None = None,
    time_zone: str | None = None,
    columns: Mapping[str, str] | None = None,
    block_tokens: int | None = None,
    scratch: Scratch | None = None,
) -> LogSet:
    """Reads the logs of one service.

    Args:
      paths: files, folders of them, a run's folder, or one trace. units: a file's column -> its unit, where its name
        does not say it: `{"latency": "ms"}`.
      time_zone: in which hours are counted, and of dates without an offset; None means UTC.
      columns: canonical column -> the file's, where names do not tell.
      block_tokens: tokens of a KV block; None takes it from a run's folder, if that is what is read.
      scratch: where tables stand that do not fit in memory; None means the usual place and size.

    Raises:
      TraceError: a file that cannot be read, is none of the logs, or has a column whose unit has to be asked for.
      ConfigError: a time zone, unit or column that does not exist.
    """
    zone, scratch, units = _zone(time_zone), scratch or Scratch(), dict(units or {})
    found = run_folders.log_files([Path(path) for path in paths])
    files = [_read(path, units, time_zone, columns, scratch) for path in found.files]
    _check_used(units, files)
    notes = [f"{file.path.name}: {note}" for file in files for note in file.notes]
    dated = _all_dated(files)
    logs = {log: clean.clean(log, _together(log, files), scratch) for log in _present(files)}
    _check_some_left(logs["api"])
    notes += [f"{log} log: {note}" for log, cleaned in logs.items() for note in cleaned.notes]
    _check_latencies(files, logs["api"], units)
    tables, moved = _on_one_clock({log: cleaned.table for log, cleaned in logs.items()})
    tables, numbered = _with_numbered_replicas(tables)
    start_ns = _first_second(tables)
    trace = _only_trace(files, logs["api"])
    return LogSet(
        start=datetime.datetime.fromtimestamp(start_ns // 10**9, zone),
        **{log: _since(start_ns, log, table) for log, table in tables.items()},
        notes=(*notes, *moved, *numbered),
        counts={f"{log}_{what}": number for log, cleaned in logs.items() for what, number in cleaned.counts.items()},
        block_tokens=block_tokens if block_tokens is not None else found.block_tokens,
        dated=dated,
        prefixes=None if trace is None else trace.prefix_hashes,
        prefix_block_tokens=None if trace is None else trace.prefix_block_tokens,
        scratch=scratch,
    )


def _read(
    path: Path, units: Mapping[str, str], zone: str | None, columns: Mapping[str, str] | None, scratch: Scratch
) -> _File:
    """One file, under canonical names."""
    # What is packed with xz cannot be streamed, and traces are small enough to be unpacked in memory.
    source = None if sources.is_xz(path) else sources.scan(path)
    if source is None or traces.is_trace(source.names):
        trace = traces.trace_of(path)
        said = f"read as a trace: {trace.source}"
        return _File(path, "api", traces.api_table(trace).lazy(), False, (said,), trace=trace)
    matched = match(str(path), source.names, columns)
    try:
        source = sources.surviving_bad_lines(source)
        table, dated, notes = cells.canonical(source, matched, units, zone)
        if source.kind != "Parquet":
            table = scratch.settled(table, path.stat().st_size // _BYTES_A_ROW)
    except pl.exceptions.PolarsError as error:
        raise TraceError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    latency = matched.columns.get("latency_s", (None, None))[0]
    return _File(path, matched.log, table, dated, (matched.sentence(), *notes), source.names, latency)


def _zone(name: str | None) -> datetime.tzinfo:
    try:
        return datetime.UTC if name is None else zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise ConfigError(
            f"time_zone = '{name}' is no time zone.{nearest(str(name), zoneinfo.available_timezones())} "
            "Names are those of the tz database: Europe/Berlin, America/New_York, UTC"
        ) from None


def _check_used(units: Mapping[str, str], files: Sequence[_File]) -> None:
    """Refuses a unit for a column that no file has."""
    there = {name for file in files for name in file.columns}
    for name in units:
        if name not in there:
            raise ConfigError(f"units: no file has a column '{name}'.{nearest(name, there)}")


def _present(files: Sequence[_File]) -> list[str]:
    logs = [log for log in schema.COLUMNS if any(file.log == log for file in files)]
    if "api" not in logs:
        read = ", ".join(f"{file.path.name} is the {file.log} log" for file in files)
        raise TraceError(f"there is no api log among the files, and everything starts from it: {read}. Add its file")
    return logs


def _check_some_left(api: clean.Cleaned) -> None:
    if not api.rows:
        why = "; ".join(api.notes) or "it has no rows"
        raise TraceError(f"the api log has no request that can be analysed: {why}")


def _check_latencies(files: Sequence[_File], api: clean.Cleaned, units: Mapping[str, str]) -> None:
    """Refuses latencies that cannot be what their unit says, unless the caller stated it."""
    columns = [file.latency for file in files if file.log == "api" and file.latency is not None]
    if columns and not set(columns) & units.keys():
        plausible.check(api.table, columns[0])


def _together(log: str, files: Sequence[_File]) -> pl.LazyFrame:
    """All files of a log as one table; a column that one of them lacks is null there."""
    tables = [file.table for file in files if file.log == log]
    return tables[0] if len(tables) == 1 else pl.concat(tables, how="diagonal_relaxed")


def _all_dated(files: Sequence[_File]) -> bool:
    """Whether the files have dates; all of them or none."""
    timed = {file.dated for file in files} - {None}
    if len(timed) > 1:
        with_dates = ", ".join(file.path.name for file in files if file.dated)
        without = ", ".join(file.path.name for file in files if file.dated is False)
        raise TraceError(f"{with_dates} has dates and {without} counts from zero: they cannot be laid on one clock")
    return True in timed


def _on_one_clock(tables: dict[str, pl.LazyFrame]) -> tuple[dict[str, pl.LazyFrame], list[str]]:
    """Every log on the api log's clock, and what that took."""
    api = tables["api"]
    offsets = [
        clocks.offset_by_load(table, api) if log == "telemetry" else clocks.offset_by_requests(log, table, api)
        for log, table in tables.items()
        if log != "api"
    ]
    known = [offset for offset in offsets if offset is not None]
    for offset in known:
        if offset.clear:
            ahead_ns = round(offset.seconds * 1e9)
            tables[offset.log] = tables[offset.log].with_columns(pl.col("time_ns") - ahead_ns)
    return tables, [offset.sentence() for offset in known]


def _with_numbered_replicas(tables: dict[str, pl.LazyFrame]) -> tuple[dict[str, pl.LazyFrame], list[str]]:
    """Replicas as numbers: as they are, or names in alphabetical order from 0, the same in every log."""
    named = {log: table for log, table in tables.items() if "replica" in table.collect_schema().names()}
    if not named:
        return tables, []
    seen = [table.select("replica").unique().collect(engine="streaming")["replica"] for table in named.values()]
    texts = sorted(set(pl.concat(seen).drop_nulls().to_list()))
    if all(text.isdecimal() for text in texts):
        number, notes = pl.col("replica").cast(pl.Int64), []
    else:
        numbers = {text: place for place, text in enumerate(texts)}
        named_so = [pl.when(pl.col("replica") == text).then(pl.lit(place)) for text, place in numbers.items()]
        number = pl.coalesce(*named_so).cast(pl.Int64)  # comparisons, because they stream and `replace_strict` does not
        notes = [f"replicas are numbered by name: {', '.join(f'{place} is {text}' for text, place in numbers.items())}"]
    return tables | {log: table.with_columns(replica=number) for log, table in named.items()}, notes


def _first_second(tables: Mapping[str, pl.LazyFrame]) -> int:
    """The whole second in which the first entry of any log falls, in nanoseconds."""
    timed = [table.select(pl.col("time_ns").min()) for table in tables.values() if "time_ns" in table.collect_schema()]
    firsts = [table.collect(engine="streaming").item() for table in timed]
    return min(int(first) for first in firsts if first is not None) // 10**9 * 10**9  # a log may be empty


def _since(start_ns: int, log: str, table: pl.LazyFrame) -> pl.LazyFrame:
    """Times as seconds since the start; columns in the order of the schema."""
    present = table.collect_schema().names()
    if "time_ns" in present:
        table = table.with_columns(time_s=(pl.col("time_ns") - start_ns) / 1e9).drop("time_ns")
        present = ["time_s", *(name for name in present if name != "time_ns")]
    order = [*schema.COLUMNS[log], *schema.APP_COLUMNS, *schema.ERROR_COLUMNS]
    return table.select(sorted(present, key=order.index))


def _only_trace(files: Sequence[_File], api: clean.Cleaned) -> Trace | None:
    """The trace that was read, if it is the api log, whole: then row i of one is row i of the other."""
    found = [file.trace for file in files if file.log == "api"]
    trace = found[0] if len(found) == 1 else None
    return trace if trace is not None and len(trace) == api.rows else None
