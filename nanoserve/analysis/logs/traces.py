"""Traces that `nanoserve.trace` reads, as api logs: requests with lengths, without statuses and latencies.

Of the formats there, Azure's is read like any log, for its dates are worth keeping; the others count from zero and some
carry hashes of prompt blocks, which a log has no column for.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl

from nanoserve.trace.readers import read_trace
from nanoserve.trace.types import Trace

_FORMATS = (
    {"timestamp", "input_length", "output_length"},
    {"arrival_time_ns", "input_toks", "output_toks"},
    {"Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"},
    {"arrival_s", "prompt_tokens", "output_tokens"},
    {"input_lens", "output_lens"},
)
"""Columns by which a file is one of these traces: Mooncake and agent, ShareGPT, BurstGPT, our own, vLLM's result."""


def is_trace(names: Collection[str]) -> bool:
    """Whether a file with these columns is one of these traces; one that says how its requests ended is a log."""
    present = set(names)
    return any(wanted <= present for wanted in _FORMATS) and not {"status", "latency_s", "request_id"} & present


def trace_of(path: Path) -> Trace:
    """Reads the file.

    Raises:
      TraceError: it cannot be read, or a row of it is wrong.
    """
    return read_trace(path)


def api_table(trace: Trace) -> pl.DataFrame:
    """A trace's requests under canonical names, with times in `time_ns`."""
    answers = trace.output_tokens if trace.answer_tokens is None else trace.answer_tokens
    columns = {
        "time_ns": np.round(trace.arrival_s * 1e9).astype(np.int64),
        "prompt_tokens": trace.prompt_tokens,
        "response_tokens": answers,
    }
    table = pl.DataFrame(columns)
    for name, values in (("user_id", trace.client), ("session_id", trace.session)):
        if values is not None:
            table = table.with_columns(pl.Series(name, values).cast(pl.String))
    return table if trace.turn is None else table.with_columns(pl.Series("turn", trace.turn))
