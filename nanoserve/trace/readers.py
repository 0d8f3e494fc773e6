"""Trace files in: `read_trace` finds the format by looking inside, never by the name.

Formats: Azure and BurstGPT CSV (`readers_csv`), Mooncake, agent, ShareGPT and prompt JSONL (`readers_jsonl`), vLLM
benchmark results (`readers_vllm`), and nanoserve's own Parquet (`parquet`). Text may be packed with gzip or xz. The
whole file is checked, whatever part of it is asked for; what is wrong is a `TraceError` that names file and line.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from nanoserve.trace.files import content_of, text_of
from nanoserve.trace.slices import head
from nanoserve.trace.types import Trace

_PACKED = {".gz", ".xz", ".csv", ".json", ".jsonl", ".parquet"}


def read_trace(
    path: str | os.PathLike[str],
    *,
    time_unit: str | None = None,
    limit: int | None = None,
    encode: Callable[[str], list[int]] | None = None,
) -> Trace:
    """Reads a trace file of any known format.

    Args:
      path: the file.
      time_unit: `s`, `ms`, `us` or `ns`, for formats whose timestamps are bare numbers; None means the format's own.
      limit: at most so many requests, from the start; None means all.
      encode: text to token ids; needed where the file has prompts as text.

    Returns:
      The trace, validated. Its source names the file and the format.

    Raises:
      TraceError: if the file cannot be read or a row of it is wrong.
      ConfigError: if `time_unit` or `limit` cannot be.
    """
    path = os.fspath(path)
    trace = _read(path, content_of(path), _name_of(path), time_unit, encode).validated()
    return trace if limit is None else head(trace, limit)


def _read(
    path: str, content: bytes, name: str, time_unit: str | None, encode: Callable[[str], list[int]] | None
) -> Trace:
    # Formats are imported where they are used: polars is not needed to say that a file is missing.
    from nanoserve.trace import columns, parquet, readers_csv, readers_jsonl, readers_vllm

    if content.startswith(parquet.MAGIC):
        columns.no_time_unit(path, time_unit, "arrival_s", "seconds")
        return parquet.read_parquet(path, content, name=name)
    text = text_of(path, content)
    if not text.lstrip().startswith(("{", "[")):
        return readers_csv.read_csv(path, text, name=name, time_unit=time_unit)
    document = _single_document(text)
    if readers_vllm.is_vllm_result(document):
        columns.no_time_unit(path, time_unit, "start_times", "seconds")
        return readers_vllm.read_vllm_result(path, document, name=name)
    return readers_jsonl.read_jsonl(path, text, name=name, time_unit=time_unit, encode=encode)


def _single_document(text: str) -> Any:
    """The file as one JSON document; None if it is not one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _name_of(path: str) -> str:
    name = pathlib.Path(path)
    while name.suffix in _PACKED:
        name = name.with_suffix("")
    return name.name
