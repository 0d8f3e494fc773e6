"""What a monitor of the machines would have recorded of a simulated run: one row a replica and bucket of time.

Shares of compute and bandwidth are means over the whole bucket, idle time included; a plan that lies in several buckets
counts in each with the part of its time that lies there, so sums over buckets are those over plans. Occupancy is that
at the end of the bucket, as the last plan before it left it.

The temperature is a model, not a measurement: board power goes from `IDLE_SHARE` of the thermal design power to all of
it with the busier of compute and bandwidth, and the chip follows it as one heat capacity. Its constants are
assumptions. Next: `service_logs`, the other logs.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from nanoserve.report.series import rate_over_time

IDLE_SHARE = 0.12  # of the thermal design power; an H100 of 700 W that waits reports some 70 to 120 W
AMBIENT_C = 30.0
FULL_POWER_C = 80.0  # where a chip settles at its thermal design power; data centres keep them below
THERMAL_S = 90.0  # time constant of chip and heat sink

_SHARES = {"compute": "mfu", "bandwidth": "mbu"}
_LEVELS = {"queue": "waiting", "running": "running"}
_HELD = {"blocks_used": ("pages_used", 0), "used_tokens": ("kv_tokens_held", 0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to know of a replica's chips, all of them together, besides its plans.

    Attributes:
      memory_bytes: of the chips. held_bytes: weights, activations and runtime, which are always in use.
      page_bytes: a page of KV. pages: in the pool.
      holds_when_idle: whether something stays in memory when the last sequence has left: kept sessions, leaked pages.
    """

    memory_bytes: float
    held_bytes: float
    page_bytes: float
    pages: int
    holds_when_idle: bool


def telemetry(steps: pl.DataFrame, machines: Sequence[Machine], bucket_s: float) -> pl.DataFrame:
    """The telemetry log of a run.

    Args:
      steps: `engine.records`, of a fleet with its columns. machines: of the replicas, by their numbers.
      bucket_s: length of a bucket; the first begins at time 0.

    Returns:
      Sorted by time and replica, with the columns of `service_logs.TELEMETRY`.
    """
    ends_s = steps["start_s"] + steps["duration_s"]
    buckets = max(1, math.ceil(float(ends_s.max() or 0.0) / bucket_s))  # type: ignore[arg-type]
    edges_s = np.arange(buckets + 1) * bucket_s
    tables = []
    for number, machine in enumerate(machines):
        plans = _of_replica(steps, number).sort("start_s")
        columns = {"time_s": edges_s[:-1], **_means(plans, edges_s), **_occupancy(plans, machine, edges_s[1:])}
        heat = temperature_c(np.maximum(columns["compute"], columns["bandwidth"]), bucket_s)
        table = pl.DataFrame(columns | {"temperature_c": heat})
        tables.append(table.with_columns(pl.lit(number, pl.Int64).alias("replica")))
    return pl.concat(tables).sort("time_s", "replica")


def temperature_c(activity: np.ndarray, bucket_s: float) -> np.ndarray:
    """Temperature at the end of each bucket, of a chip that begins idle.

    Args:
      activity: float [buckets], 0 to 1. bucket_s: their length.

    Returns:
      float [buckets], degrees Celsius.
    """
    settled = AMBIENT_C + (FULL_POWER_C - AMBIENT_C) * (IDLE_SHARE + (1 - IDLE_SHARE) * np.clip(activity, 0, 1))
    kept = math.exp(-bucket_s / THERMAL_S)
    return np.fromiter(_followed(settled.tolist(), kept), np.float64, len(settled))


def _followed(settled: Sequence[float], kept: float) -> Iterator[float]:
    """What follows a level that changes from bucket to bucket, keeping a share of its distance in each."""
    now = AMBIENT_C + (FULL_POWER_C - AMBIENT_C) * IDLE_SHARE
    for level in settled:
        now = level + (now - level) * kept
        yield now


def _of_replica(table: pl.DataFrame, number: int) -> pl.DataFrame:
    """The rows of a replica; of a single engine's records, which have no such column, all of them."""
    return table.filter(pl.col("replica") == number) if "replica" in table.columns else table


def _means(plans: pl.DataFrame, edges_s: np.ndarray) -> dict[str, np.ndarray]:
    """Means of each bucket, idle time included."""
    start_s, duration_s = plans["start_s"].to_numpy(), plans["duration_s"].to_numpy()
    return {
        name: rate_over_time(start_s, duration_s, np.nan_to_num(plans[column].to_numpy()) * duration_s, edges_s)
        for name, column in (_SHARES | _LEVELS).items()
    }


def _occupancy(plans: pl.DataFrame, machine: Machine, ends_s: np.ndarray) -> dict[str, np.ndarray]:
    """How full the replica is at the end of each bucket."""
    last = np.searchsorted(plans["start_s"].to_numpy(), ends_s, side="right")  # 0: there was no plan yet
    over = np.append(-np.inf, plans["start_s"] + plans["duration_s"])[last] <= ends_s
    empty = (last == 0) | (over & (not machine.holds_when_idle))
    levels = {
        name: np.where(empty, at_rest, np.append(0, plans[column])[last]).astype(np.float64)
        for name, (column, at_rest) in {**_HELD, "largest_free_run_blocks": ("largest_free_run", machine.pages)}.items()
    }
    return {
        **levels,
        "blocks_total": np.full(len(ends_s), float(machine.pages)),
        "memory_bytes": machine.held_bytes + levels["blocks_used"] * machine.page_bytes,
        "memory_total_bytes": np.full(len(ends_s), machine.memory_bytes),
    }
