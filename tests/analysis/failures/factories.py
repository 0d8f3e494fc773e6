"""Services with a known truth: a small model of two engines, in which each trouble is a line that can be switched on.

No memory and no batches: a request that finds its engine busy waits for the step that runs, and decodes at one pace.
What a test plants is in the arguments; everything else is as in a service that is in order.
"""

import dataclasses

import numpy as np
import polars as pl

from nanoserve.analysis.service import DAY_S, Service
from tests.analysis.logs.factories import MONDAY

STEP_S = 0.03
POOL_BLOCKS = 1000
BUCKET_S = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """What is planted.

    Attributes:
      interval_s: engines look for requests so often. slow: replica 1 takes so many times the time for everything.
      leak_blocks: a day, lost by replica 0. days, per_day: length of the log, requests.
    """

    seed: int = 0
    days: float = 3.0
    per_day: int = 4000
    interval_s: float = 0.0
    slow: float = 1.0
    leak_blocks: float = 0.0


def service(truth: Truth) -> Service:
    """The logs of a service with this truth."""
    rng = np.random.default_rng(truth.seed)
    count = int(truth.days * truth.per_day)
    start_s = np.sort(rng.uniform(0, truth.days * DAY_S, count))
    prompts = np.clip(rng.lognormal(5, 1, count), 4, 4000).astype(np.int64)
    answers = np.clip(rng.lognormal(4, 0.8, count), 1, 800).astype(np.int64)
    replica = rng.integers(0, 2, count)
    factor = np.where(replica == 1, truth.slow, 1.0)
    ttft_s = factor * (STEP_S + prompts * 1e-4) + _waits_s(rng, truth, start_s, answers, replica, factor)
    latency_s = ttft_s + (answers - 1) * STEP_S * factor * rng.normal(1, 0.01, count)
    blocks = -(-(prompts + answers) // 16)
    requests = pl.DataFrame(
        {
            "time_s": start_s,
            "prompt_tokens": prompts,
            "response_tokens": answers,
            "status": np.full(count, 200),
            "latency_s": latency_s,
            "ttft_s": ttft_s,
            "replica": replica,
            "allocated_blocks": blocks,
            "used_tokens": prompts + answers - 1,
        }
    )
    return Service(
        start=MONDAY, requests=requests, telemetry=_telemetry(rng, truth), errors=no_errors(), block_tokens=16
    )


def _waits_s(rng, truth, start_s, answers, replica, factor) -> np.ndarray:
    """Who finds the engine busy waits for its step, and for its next look."""
    waits_s, free_s = np.zeros(len(start_s)), [0.0, 0.0]
    for row, (now_s, engine) in enumerate(zip(start_s, replica, strict=True)):
        if now_s < free_s[engine]:
            waits_s[row] = rng.uniform(0, STEP_S * factor[row]) + rng.uniform(0, truth.interval_s)
        free_s[engine] = max(free_s[engine], now_s + waits_s[row] + answers[row] * STEP_S * factor[row])
    return waits_s


def _telemetry(rng, truth: Truth) -> pl.DataFrame:
    """Buckets of both replicas: what sessions keep comes and goes, what leaks stays."""
    times_s = np.arange(0, truth.days * DAY_S, BUCKET_S)
    tables = []
    for replica in range(2):
        busy = 0.5 + 0.5 * np.sin(times_s / DAY_S * 2 * np.pi)
        kept = np.floor(rng.uniform(0, 200, len(times_s)) * busy)
        leaked = np.floor(times_s / DAY_S * truth.leak_blocks) * (replica == 0)
        tables.append(
            pl.DataFrame(
                {
                    "time_s": times_s,
                    "replica": np.full(len(times_s), replica),
                    "compute": 0.2 * busy,
                    "bandwidth": 0.6 * busy,
                    "running": np.round(4 * busy),
                    "queue": np.zeros(len(times_s)),
                    "blocks_used": kept + leaked,
                    "blocks_total": np.full(len(times_s), float(POOL_BLOCKS)),
                    "largest_free_run_blocks": POOL_BLOCKS - kept - leaked,
                    "used_tokens": kept * 16,
                }
            )
        )
    return pl.concat(tables).sort("time_s", "replica")


def no_errors() -> pl.DataFrame:
    """An error log in which nothing stands."""
    return pl.DataFrame(schema={"time_s": pl.Float64, "error_type": pl.String, "traceback": pl.String})


def requests_of(**columns) -> Service:
    """A service of a few requests, written out."""
    return Service(start=MONDAY, requests=pl.DataFrame(columns), errors=no_errors(), block_tokens=16)


def memory_error(tried, free, total, run, running, kept, sequences=3, sessions=2) -> str:
    """A traceback of an engine that ran out of memory."""
    return (
        'Traceback (most recent call last):\n  File "service/block_manager.py", in allocate\n'
        f"OutOfMemoryError: tried to allocate {tried} blocks; {free} of {total} free, largest free run {run}; "
        f"{sequences} sequences hold {running}, {sessions} kept sessions hold {kept}; "
        "largest holder session 1833 with 160"
    )


def with_failures(base: Service, rows: np.ndarray, status: int, tracebacks: list[str] | None = None) -> Service:
    """The service with some of its requests failed, and what the error log says of them."""
    status_column = base.requests["status"].to_numpy().copy()
    status_column[rows] = status
    kind = {503: "OutOfMemory", 504: "Timeout", 429: "Refused"}[status]
    errors = pl.DataFrame(
        {
            "time_s": base.requests["time_s"].to_numpy()[rows],
            "error_type": [kind] * len(rows),
            "traceback": tracebacks or [kind] * len(rows),
        }
    )
    requests = base.requests.with_columns(pl.Series("status", status_column))
    return dataclasses.replace(base, requests=requests, errors=errors)
