"""What the logs say of a service in numbers: the tables that usage and failures are computed from.

Only columns of numbers are kept, so ten million requests are half a gigabyte; who asked, and in which conversation, is
for others. Rows are in order of time, ties in order of their values, so the order of a log's rows changes nothing.

Next: `usage` (how the machine is used), `failures` (what goes wrong), `failures.causes` (why).
"""

import dataclasses
import datetime
import functools

import numpy as np
import polars as pl

from nanoserve.analysis.logs.calendar import local_time
from nanoserve.analysis.logs.log_set import LogSet

HOUR_S = 3600.0
DAY_S = 86400.0

_REQUEST_TYPES: dict[str, pl.DataType] = {
    "time_s": pl.Float64(),
    "prompt_tokens": pl.Int32(),
    "response_tokens": pl.Int32(),
    "status": pl.Int16(),
    "latency_s": pl.Float64(),
    "ttft_s": pl.Float64(),
    "replica": pl.Int16(),
    "allocated_blocks": pl.Int32(),
    "used_tokens": pl.Int32(),
}
SERVED = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """The logs of one service, cleaned, in memory.

    Attributes:
      start: what time 0 is, in the time zone that hours and weekdays are counted in.
      requests: a subset of the columns of the API log, by `time_s`; times and statuses that are unknown are null.
      telemetry: a subset of its columns, by `time_s`; None where there is no such log.
      errors: `time_s`, `request_id`, `error_type`, `traceback`, by `time_s`; None where there is no such log.
      block_tokens: tokens of a KV block; None where nothing tells.
      dated: whether the logs say what day it was; otherwise hours of the day mean nothing.
    """

    start: datetime.datetime
    requests: pl.DataFrame
    telemetry: pl.DataFrame | None = None
    errors: pl.DataFrame | None = None
    block_tokens: int | None = None
    dated: bool = True

    def has(self, *columns: str) -> bool:
        """Whether the requests have all of these columns, each with a value somewhere."""
        return all(
            name in self.requests.columns and self.requests[name].null_count() < self.requests.height
            for name in columns
        )

    def telemetry_has(self, *columns: str) -> bool:
        """Whether there is telemetry with all of these columns, each with a value somewhere."""
        table = self.telemetry
        return (
            table is not None
            and table.height > 0
            and all(name in table.columns and table[name].null_count() < table.height for name in columns)
        )

    def floats(self, name: str) -> np.ndarray:
        """A column of the requests as float64 [N]; NaN where it is unknown or absent."""
        if name not in self.requests.columns:
            return np.broadcast_to(np.nan, self.requests.height)
        return self.requests[name].cast(pl.Float64).fill_null(np.nan).to_numpy()

    @functools.cached_property
    def failed(self) -> np.ndarray:
        """Which requests failed, bool [N]; nobody where there is no status."""
        if "status" not in self.requests.columns:
            return np.zeros(self.requests.height, dtype=bool)
        return self.requests["status"].fill_null(SERVED).to_numpy() != SERVED

    @functools.cached_property
    def replicas(self) -> np.ndarray:
        """Which engine served each request, int [N]; all 0 where the log does not say, -1 where it is null."""
        if not self.has("replica"):
            return np.broadcast_to(np.int16(0), self.requests.height)
        return self.requests["replica"].fill_null(-1).to_numpy()

    def hours(self, times_s: np.ndarray) -> np.ndarray:
        """The hour on the wall, 0 to 23, of moments of this service; int8."""
        return pl.DataFrame({"time_s": times_s}).select(local_time(self.start).dt.hour()).to_series().to_numpy()


def service_of(logs: LogSet) -> Service:
    """Brings the logs that usage and failures need into memory.

    Args:
      logs: read and cleaned.
    """
    kept = [name for name in _REQUEST_TYPES if name in logs.api.collect_schema().names()]
    requests = logs.api.select(pl.col(name).cast(_REQUEST_TYPES[name]) for name in kept)
    return Service(
        start=logs.start,
        requests=requests.collect(engine="streaming").sort(kept),
        telemetry=None if logs.telemetry is None else _by_time(logs.telemetry),
        errors=None if logs.errors is None else _by_time(logs.errors),
        block_tokens=logs.block_tokens,
        dated=logs.dated,
    )


def _by_time(table: pl.LazyFrame) -> pl.DataFrame:
    return table.collect().sort("time_s", maintain_order=True)
