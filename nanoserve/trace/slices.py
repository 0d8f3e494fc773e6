"""Parts of a trace, and a trace at another speed; each is a trace again."""

import dataclasses

import numpy as np

from nanoserve.specs.errors import ConfigError, TraceError
from nanoserve.trace.columns import dense
from nanoserve.trace.types import Ragged, Trace


def head(trace: Trace, count: int) -> Trace:
    """The first `count` requests, or all of them if there are fewer.

    Raises:
      ConfigError: if `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"the first {count} requests of a trace: wanted at least 1")
    if count >= len(trace):
        return trace
    return dataclasses.replace(_rows(trace, np.arange(count)), source=f"{trace.source}; first {count:,} requests")


def window(trace: Trace, start_s: float, end_s: float) -> Trace:
    """The requests that arrive in [start_s, end_s), with time counted from `start_s`.

    Sessions and clients are numbered anew. Turns keep their number: a session that began earlier does not start at 0.

    Raises:
      ConfigError: if the window is empty or reversed. TraceError: if nothing arrives in it.
    """
    if not 0 <= start_s < end_s:
        raise ConfigError(f"window from {start_s} s to {end_s} s: wanted 0 <= start < end")
    first, last = np.searchsorted(trace.arrival_s, (start_s, end_s))
    if first == last:
        span = f"{trace.arrival_s[0]:.3f} s to {trace.arrival_s[-1]:.3f} s" if len(trace) else "nothing"
        raise TraceError(f"trace '{trace.name}': nothing arrives from {start_s} s to {end_s} s; it covers {span}")
    part = _rows(trace, np.arange(first, last))
    return dataclasses.replace(
        part, source=f"{trace.source}; {start_s} s to {end_s} s", arrival_s=part.arrival_s - start_s
    )


def chosen(trace: Trace, rows: np.ndarray) -> Trace:
    """The requests that `rows` is true for (bool [N]), at their own times.

    Sessions and clients are numbered anew; turns keep their number.
    """
    return _rows(trace, np.flatnonzero(rows))


def scaled(trace: Trace, time_scale: float) -> Trace:
    """The same requests with arrival times multiplied by `time_scale`; 0.5 doubles the rate.

    Raises:
      ConfigError: if `time_scale` is not positive and finite.
    """
    if not 0 < time_scale < float("inf"):
        raise ConfigError(f"time_scale = {time_scale}: must be positive and finite")
    if time_scale == 1:
        return trace
    return dataclasses.replace(
        trace, source=f"{trace.source}; times x {time_scale}", arrival_s=trace.arrival_s * time_scale
    )


def with_stated_limit(trace: Trace, limit_tokens: int | np.ndarray) -> Trace:
    """The same answers to clients who state a limit, one for all or one each; of a longer answer it is its length."""
    answers = trace.output_tokens
    return dataclasses.replace(trace, answer_tokens=answers, output_tokens=np.maximum(answers, limit_tokens))


def _rows(trace: Trace, rows: np.ndarray) -> Trace:
    """The rows of these numbers, int [M], of every column."""
    parts = {}
    for field in dataclasses.fields(trace):
        value = getattr(trace, field.name)
        if isinstance(value, Ragged):
            parts[field.name] = _ragged_rows(value, rows)
        elif isinstance(value, np.ndarray):
            parts[field.name] = value[rows]
        elif isinstance(value, tuple):
            parts[field.name] = tuple(value[row] for row in rows.tolist())
    for column in ("session", "client"):
        if column in parts:
            parts[column] = dense(parts[column].tolist())
    return dataclasses.replace(trace, **parts)


def _ragged_rows(ragged: Ragged, rows: np.ndarray) -> Ragged:
    lengths = np.diff(ragged.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.repeat(ragged.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Ragged(ragged.values[places], offsets)
