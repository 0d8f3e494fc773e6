"""nanoserve's own trace file: one Parquet column per column of `Trace`, the rest in the file's metadata."""

import dataclasses
import io
import json
import os
from typing import Any

import numpy as np
import polars as pl

from nanoserve.specs.errors import TraceError
from nanoserve.trace.columns import missing_message
from nanoserve.trace.types import Ragged, Trace

MAGIC = b"PAR1"
_KEY = "nanoserve_trace"
_SCALARS = {"name": str, "source": str, "prefix_block_tokens": int | None}
_RAGGED = ("prefix_hashes", "prompt_ids", "output_ids")
_REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
_TEXTS = ("region", "texts")
_INTEGERS = ("prompt_tokens", "output_tokens", "answer_tokens", "session", "turn", "client", "priority")


def write_parquet(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Writes every column and field of a trace; the file appears whole or not at all."""
    columns = {}
    for field in dataclasses.fields(trace):
        value = getattr(trace, field.name)
        if isinstance(value, Ragged):
            columns[field.name] = _list_column(value)
        elif isinstance(value, np.ndarray | tuple):
            columns[field.name] = pl.Series(value)
    scalars = {name: getattr(trace, name) for name in _SCALARS}
    partial = f"{os.fspath(path)}.partial"
    pl.DataFrame(columns).write_parquet(partial, metadata={_KEY: json.dumps(scalars)})
    os.replace(partial, path)


def read_parquet(path: str, content: bytes, *, name: str) -> Trace:
    """Reads what `write_parquet` wrote, or any Parquet file with columns of the same names.

    Args:
      path: for messages. content: the file. name: of the trace, where the file does not carry one.

    Raises:
      TraceError: if the file is cut or damaged, or a column is missing, of the wrong type, or out of range.
    """
    try:
        frame = pl.read_parquet(io.BytesIO(content))
        metadata = pl.read_parquet_metadata(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(f"{path}: the Parquet file is cut short or damaged ({reason}). Write it again") from None
    missing = [column for column in _REQUIRED if column not in frame.columns]
    if missing:
        raise TraceError(f"{path}: {missing_message(missing, frame.columns)}")
    scalars = _scalars(path, metadata[_KEY]) if _KEY in metadata else {"name": name, "source": f"{path} (Parquet)"}
    known = [field.name for field in dataclasses.fields(Trace) if field.name in frame.columns]
    trace = Trace(**scalars, **{column: _column(path, frame[column]) for column in known})
    try:
        return trace.validated()
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _list_column(rows: Ragged) -> pl.Series:
    return pl.Series([rows.row(row).tolist() for row in range(len(rows))], dtype=pl.List(pl.Int64))


def _scalars(path: str, text: str) -> dict[str, Any]:
    try:
        scalars = json.loads(text)
    except ValueError:
        scalars = None
    if type(scalars) is not dict or not all(isinstance(scalars.get(key), kind) for key, kind in _SCALARS.items()):
        raise TraceError(f"{path}: its metadata {_KEY} is {text[:60]!r}; wanted name, source and prefix_block_tokens")
    return {key: scalars.get(key) for key in _SCALARS}


def _column(path: str, series: pl.Series) -> Any:
    if series.null_count():
        row = int(series.is_null().arg_max())  # type: ignore[arg-type]
        raise TraceError(f"{path}: {series.name} of request {row} is null")
    if series.name in _RAGGED:
        return _ragged(path, series)
    if series.name in _TEXTS:
        _check_type(path, series, series.dtype == pl.String, "text")
        return tuple(series.to_list())
    if series.name in _INTEGERS:
        _check_type(path, series, series.dtype.is_integer(), "integers")
        return series.cast(pl.Int64).to_numpy()
    _check_type(path, series, series.dtype.is_numeric(), "numbers")
    return series.cast(pl.Float64).to_numpy()


def _ragged(path: str, series: pl.Series) -> Ragged:
    inner = getattr(series.dtype, "inner", None)
    _check_type(path, series, inner is not None and inner.is_integer(), "lists of integers")
    nulls = series.list.eval(pl.element().is_null().any()).list.first().fill_null(False)  # of an empty list: null
    if nulls.any():
        raise TraceError(f"{path}: {series.name} of request {nulls.arg_max()} has a null in its list")
    offsets = np.append(0, np.cumsum(series.list.len().to_numpy().astype(np.int64)))
    return Ragged(series.explode(empty_as_null=False).cast(pl.Int64).to_numpy(), offsets)


def _check_type(path: str, series: pl.Series, good: bool, wanted: str) -> None:
    if not good:
        raise TraceError(f"{path}: column {series.name} holds {series.dtype}; wanted {wanted}")
