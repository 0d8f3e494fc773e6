"""From rows of a file to checked columns: what every reader of a text format shares.

A row that cannot be a request is an error that names its line, never repaired. Next: `readers_csv`, `readers_jsonl`.
"""

import itertools
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import NoReturn

import numpy as np

from nanoserve.specs.errors import ConfigError, TraceError, nearest
from nanoserve.trace.types import MAX_TOKENS, Ragged

UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def fail(path: str, line: int, what: str) -> NoReturn:
    """Raises `TraceError` at a line of a file."""
    raise TraceError(f"{path}:{line}: {what}")


def units_per_s(time_unit: str | None, default: str) -> int:
    """How many of the file's time units make a second.

    Args:
      time_unit: what the caller asked for; None means the format's own.
      default: the format's own: `s`, `ms`, `us` or `ns`.

    Raises:
      ConfigError: if the unit is unknown.
    """
    unit = default if time_unit is None else time_unit
    if unit not in UNITS_PER_S:
        raise ConfigError(f"time_unit = '{unit}' is not a unit of time.{nearest(unit, UNITS_PER_S)}")
    return UNITS_PER_S[unit]


def no_time_unit(path: str, time_unit: str | None, column: str, meaning: str) -> None:
    """Refuses a `time_unit` for a file whose times have only one meaning.

    Raises:
      ConfigError: if a unit was given.
    """
    if time_unit is not None:
        raise ConfigError(f"time_unit = '{time_unit}' does not apply to {path}: {column} holds {meaning}. Leave it out")


def best_format(path: str, line: int, present: Collection[str], formats: Mapping[str, Sequence[str]]) -> str:
    """Returns the name of the format whose required columns are all present.

    Args:
      path, line: where the columns were read.
      present: column names in the file.
      formats: format name -> its required columns.

    Raises:
      TraceError: listing what is missing and what is there, for the format that comes closest.
    """
    found = {name: sum(column in present for column in columns) for name, columns in formats.items()}
    for name, columns in formats.items():
        if found[name] == len(columns):
            return name
    closest = max(found, key=lambda name: found[name])
    if found[closest] == 0:
        known = "; ".join(f"{name} ({', '.join(columns)})" for name, columns in formats.items())
        fail(path, line, f"no known trace format. Found: {_listing(present)}. Known: {known}")
    missing = [column for column in formats[closest] if column not in present]
    fail(path, line, f"looks like {closest}, but {missing_message(missing, present)}")


def missing_message(missing: Sequence[str], present: Collection[str]) -> str:
    """Says which columns are missing, the nearest name that is there, and what is there."""
    hints = "".join(hint for column in missing if "Did you" in (hint := nearest(column, present).split(" Valid")[0]))
    return f"column {', '.join(missing)} is missing.{hints} Found: {_listing(present)}"


def check_times(path: str, lines: np.ndarray, arrival_s: np.ndarray) -> None:
    """Checks that arrivals are finite, not negative, and sorted.

    Args:
      path: the file. lines: int64 [N], the line each row was read from. arrival_s: float64 [N], seconds.

    Raises:
      TraceError: at the first line that breaks a rule.
    """
    bad = ~np.isfinite(arrival_s) | (arrival_s < 0)
    if bad.any():
        row = int(np.argmax(bad))
        fail(path, int(lines[row]), f"arrival time {arrival_s[row]} s; wanted a finite time >= 0")
    back = np.flatnonzero(np.diff(arrival_s) < 0)
    if len(back):
        row = int(back[0]) + 1
        before = f"{arrival_s[row - 1]} s on line {lines[row - 1]}"
        fail(path, int(lines[row]), f"arrival time {arrival_s[row]} s is before {before}. Sort the file by time")


def check_tokens(path: str, lines: np.ndarray, name: str, tokens: np.ndarray, least: int = 1) -> None:
    """Checks that lengths are between `least` and `MAX_TOKENS`.

    Raises:
      TraceError: at the first line that breaks it.
    """
    bad = (tokens < least) | (tokens > MAX_TOKENS)
    if bad.any():
        row = int(np.argmax(bad))
        fail(path, int(lines[row]), f"{name} is {tokens[row]}; wanted {least} to {MAX_TOKENS:,} tokens")


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    """Packs rows of integers into two arrays."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return Ragged(np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(offsets[-1])), offsets)


def dense(values: Iterable[Hashable]) -> np.ndarray:
    """Numbers values from 0 in order of first appearance; int64 [N]."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def turns_in_order(session: np.ndarray) -> np.ndarray:
    """How many earlier rows are of the same session; int64 [N]."""
    order = np.argsort(session, kind="stable")
    _, first, count = np.unique(session[order], return_index=True, return_counts=True)
    turn = np.empty(len(session), np.int64)
    turn[order] = np.arange(len(session)) - np.repeat(first, count)
    return turn


def _listing(names: Collection[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in itertools.islice(names, 12))
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
