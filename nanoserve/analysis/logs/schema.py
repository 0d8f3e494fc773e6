"""The four logs of a service and the table that they join into: names, types, units and what each column means.

Every reader ends in these columns, whatever a file called them; everything after reading knows no other names. Times
are seconds since `LogSet.start`, so that arithmetic needs no calendar; hours and weekdays are asked of `start`.
Next: `log_set`, the tables themselves; `read`, how files become them.
"""

import polars as pl

API_COLUMNS: dict[str, tuple[pl.DataType, str]] = {
    "time_s": (pl.Float64(), "when the request was sent"),
    "request_id": (pl.String(), "what the other logs call it"),
    "prompt_tokens": (pl.Int64(), "tokens of the prompt, history included"),
    "response_tokens": (pl.Int64(), "tokens of the answer; 0 where there was none"),
    "status": (pl.Int32(), "HTTP: 200 served, 429 refused, 503 out of memory, 504 timed out, 500 anything else"),
    "latency_s": (pl.Float64(), "from sending to the last token, or to the error"),
    "ttft_s": (pl.Float64(), "from sending to the first token; null where there was none"),
    "replica": (pl.Int64(), "which engine served it, from 0"),
    "allocated_blocks": (pl.Int64(), "most KV blocks (pages) that were set aside for it at once"),
    "used_tokens": (pl.Int64(), "KV positions that were written in them by the end"),
}

TELEMETRY_COLUMNS: dict[str, tuple[pl.DataType, str]] = {
    "time_s": (pl.Float64(), "start of the bucket"),
    "replica": (pl.Int64(), "which engine, from 0"),
    "compute": (pl.Float64(), "share of the chips' arithmetic in use, 0 to 1, mean of the bucket"),
    "bandwidth": (pl.Float64(), "share of the chips' memory bandwidth in use, 0 to 1, mean of the bucket"),
    "memory_bytes": (pl.Float64(), "device memory in use"),
    "memory_total_bytes": (pl.Float64(), "device memory there is"),
    "temperature_c": (pl.Float64(), "of the chip"),
    "queue": (pl.Float64(), "requests that waited, mean of the bucket"),
    "running": (pl.Float64(), "requests that ran, mean of the bucket"),
    "blocks_used": (pl.Float64(), "KV blocks held, at the end of the bucket"),
    "blocks_total": (pl.Float64(), "KV blocks there are"),
    "largest_free_run_blocks": (pl.Float64(), "blocks that one request could still be given, at the end of the bucket"),
    "used_tokens": (pl.Float64(), "KV positions written in the blocks held, at the end of the bucket"),
}

APP_COLUMNS: dict[str, tuple[pl.DataType, str]] = {
    "time_s": (pl.Float64(), "when the application logged it"),
    "request_id": (pl.String(), "what the other logs call it"),
    "user_id": (pl.String(), "who asked"),
    "session_id": (pl.String(), "the conversation"),
    "turn": (pl.Int64(), "place in the conversation, from 0"),
    "region": (pl.String(), "where the user is"),
}

ERROR_COLUMNS: dict[str, tuple[pl.DataType, str]] = {
    "time_s": (pl.Float64(), "when it was raised"),
    "request_id": (pl.String(), "whose request it was; null where the log does not say"),
    "error_type": (pl.String(), "name of the exception"),
    "traceback": (pl.String(), "its text; the last line is the message"),
}

REQUIRED: dict[str, tuple[str, ...]] = {
    "api": ("time_s", "prompt_tokens", "response_tokens"),
    "telemetry": ("time_s",),
    "app": ("session_id",),
    "errors": ("time_s", "error_type"),
}
"""Without these a log cannot be read; without others, what needs them is said to be missing."""

COLUMNS = {"api": API_COLUMNS, "telemetry": TELEMETRY_COLUMNS, "app": APP_COLUMNS, "errors": ERROR_COLUMNS}
"""Log -> its columns."""

SAMPLE_COLUMNS = (
    *("timestamp", "request_id", "user_id", "session_id", "turn", "region", "prompt_tokens", "response_tokens"),
    *("latency_s", "status", "allocated_blocks", "used_tokens"),
)
"""The columns of a sample trace: one row a request, `timestamp` in UTC."""
