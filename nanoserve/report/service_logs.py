"""The four logs that a service would have left of a simulated run, and the sample trace that they join into.

A run's own records know everything; a production service has an API log, telemetry of its machines, metrics of the
application and an error log, each with a part of the truth. These are those parts, with the names, units and meanings
of `nanoserve.analysis.logs.schema`, which a test compares. Clocks agree here.

Invariants: the API and application logs have one row for each request that was sent, the error log one for each that
failed. Times are seconds of the run; `as_file` makes them moments of a calendar. Next: `service_telemetry`.
"""

import datetime
from collections.abc import Sequence

import numpy as np
import polars as pl

from nanoserve.engine.types import FinishReason
from nanoserve.report.service_telemetry import Machine, telemetry
from nanoserve.trace.types import Trace

API = (
    *("time_s", "request_id", "prompt_tokens", "response_tokens", "status", "latency_s", "ttft_s", "replica"),
    *("allocated_blocks", "used_tokens"),
)
TELEMETRY = (
    *("time_s", "replica", "compute", "bandwidth", "memory_bytes", "memory_total_bytes", "temperature_c", "queue"),
    *("running", "blocks_used", "blocks_total", "largest_free_run_blocks", "used_tokens"),
)
APP = ("time_s", "request_id", "user_id", "session_id", "turn", "region")
ERRORS = ("time_s", "request_id", "error_type", "traceback")
SAMPLE = (
    *("timestamp", "request_id", "user_id", "session_id", "turn", "region", "prompt_tokens", "response_tokens"),
    *("latency_s", "status", "allocated_blocks", "used_tokens"),
)

SERVED, OTHER_ERROR = 200, 500
_STATUS = {
    FinishReason.LENGTH.value: SERVED,
    FinishReason.STOP.value: SERVED,
    FinishReason.REFUSED.value: 429,
    FinishReason.OUT_OF_MEMORY.value: 503,
    FinishReason.TIMED_OUT.value: 504,
}
_ERROR_TYPES = {429: "Refused", 503: "OutOfMemory", 504: "Timeout", OTHER_ERROR: "Aborted"}
_RAISED = {  # error type -> where in a server it is raised, and as what
    "Refused": ("admission.py", "admit", "RefusedError"),
    "OutOfMemory": ("block_manager.py", "allocate", "OutOfMemoryError"),
    "Timeout": ("deadline.py", "expire", "TimeoutError"),
    "Aborted": ("server.py", "shutdown", "AbortedError"),
}


def service_logs(
    steps: pl.DataFrame, requests: pl.DataFrame, trace: Trace, machines: Sequence[Machine], bucket_s: float
) -> dict[str, pl.DataFrame]:
    """The logs of a run, by name: `api`, `telemetry`, `app`, `errors`.

    Args:
      steps, requests: `engine.records`, of a fleet with its columns. trace: what was replayed.
      machines: of the replicas, by their numbers. bucket_s: of telemetry.
    """
    requests = requests.sort("arrival_s", "request")
    requests = requests.with_columns(
        _named("req", requests["request"].to_numpy(), 6).alias("request_id"),
        pl.col("finish_reason").replace_strict(_STATUS, default=OTHER_ERROR, return_dtype=pl.Int32).alias("status"),
    )
    return {
        "api": _api(requests),
        "telemetry": telemetry(steps, machines, bucket_s).select(TELEMETRY),
        "app": _app(requests, trace),
        "errors": _errors(requests),
    }


def sample(api: pl.DataFrame, app: pl.DataFrame, start: datetime.datetime) -> pl.DataFrame:
    """The sample trace: API and application logs joined, one row a request, in order of time.

    Args:
      api, app: of `service_logs`. start: what time 0 is, aware.
    """
    joined = api.join(app.drop("time_s"), on="request_id", how="left", maintain_order="left", validate="1:1")
    return as_file(joined, start).select(SAMPLE)


def as_file(log: pl.DataFrame, start: datetime.datetime) -> pl.DataFrame:
    """A log with moments (`timestamp`, UTC, in microseconds) in the place of seconds since the start of the run."""
    begin = start.astimezone(datetime.UTC)
    moment = pl.lit(begin).cast(pl.Datetime("us", "UTC")) + pl.duration(microseconds=(pl.col("time_s") * 1e6).round())
    return log.select(moment.alias("timestamp"), pl.exclude("time_s"))


def _api(requests: pl.DataFrame) -> pl.DataFrame:
    columns = {
        "time_s": pl.col("arrival_s"),
        "response_tokens": pl.col("output_tokens"),
        "latency_s": pl.col("finish_s") - pl.col("arrival_s"),
        "ttft_s": pl.col("first_token_s") - pl.col("arrival_s"),
        "replica": pl.col("replica") if "replica" in requests.columns else pl.lit(0, pl.Int64),
        "allocated_blocks": pl.col("allocated_pages"),
        "used_tokens": pl.col("kv_tokens"),
    }
    return requests.with_columns(**columns).select(API)


def _app(requests: pl.DataFrame, trace: Trace) -> pl.DataFrame:
    """What the application knows of each request: who asked, from where, in which conversation; if the trace says."""
    people = {
        "user_id": _named("user", trace.client, 5),
        "session_id": _named("session", trace.session, 6),
        "turn": pl.Series(trace.turn, dtype=pl.Int64),
        "region": pl.Series(trace.region, dtype=pl.String),
    }
    rows = requests["request"].to_numpy()
    known = [
        (values[rows] if len(values) else pl.Series([None] * len(rows), dtype=values.dtype)).alias(name)
        for name, values in people.items()
    ]
    return requests.select(pl.col("arrival_s").alias("time_s"), "request_id").with_columns(known).select(APP)


def _named(kind: str, numbers: np.ndarray | None, digits: int) -> pl.Series:
    """Names such as `user-00042`; none where there are no numbers."""
    return f"{kind}-" + pl.Series(numbers, dtype=pl.Int64).cast(pl.String).str.zfill(digits)


def _errors(requests: pl.DataFrame) -> pl.DataFrame:
    failed = requests.filter(pl.col("status") != SERVED).with_columns(
        pl.col("finish_s").alias("time_s"), pl.col("status").replace_strict(_ERROR_TYPES).alias("error_type")
    )
    raised = {
        error_type: f'Traceback (most recent call last):\n  File "service/server.py", in generate\n'
        f'  File "service/{file}", in {function}\n{exception}: '
        for error_type, (file, function, exception) in _RAISED.items()
    }
    text = pl.col("error_type").replace_strict(raised) + pl.col("detail")
    return failed.with_columns(text.alias("traceback")).select(ERRORS).sort("time_s", "request_id")
