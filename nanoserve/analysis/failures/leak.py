"""Whether memory is lost over time, whatever the load: the trend of what is held when nothing runs.

For every replica and six hours, the least that was held in a bucket in which as little ran as ever: sessions that are
kept between turns come and go, and what is never given back raises that floor for good. Where telemetry says how many
tokens are written, only blocks beyond those that the tokens fill are counted: a leaked block has no token that anyone
knows of. The trend is the median slope between any two floors, which a few odd hours cannot move, with the interval of
Kendall's tau.

Series of `failures.leak.floor`: `time_s` (middle of six hours), `floor_blocks` (sum over replicas), `trend_blocks`.
Next: `shortage`, what a leak does to requests.
"""

import dataclasses

import numpy as np
import polars as pl

from nanoserve.analysis.estimate import Estimate
from nanoserve.analysis.failures.intervals import robust_slope
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.service import DAY_S, HOUR_S, Service

KEY = "failures.leak.floor"
WINDOW_S = 6 * HOUR_S
_LEAST_WINDOWS = 6
SURE = 0.99  # every replica is looked at, and one that leaks by chance would be one too many
_GROWTH = 0.01  # of the pool over the log: less than that is no leak to act upon


@dataclasses.dataclass(frozen=True, kw_only=True)
class Floor:
    """What one replica holds at its quietest.

    Attributes:
      replica: its number. time_s: float [M], middles of the windows. blocks: float [M], the least held.
      total: blocks of its pool. slope: blocks per second, its interval at `SURE`.
      start_s, end_s: the span of its telemetry.
    """

    replica: int
    time_s: np.ndarray
    blocks: np.ndarray
    total: float
    slope: Estimate
    start_s: float
    end_s: float

    @property
    def grown_share(self) -> float:
        """Blocks lost over the log, over the pool; 0 where the floor may not be rising."""
        return self.slope.value * (self.end_s - self.start_s) / self.total if self.slope.low > 0 else 0.0

    @property
    def leaks(self) -> bool:
        """Whether the floor rises for sure, and by an amount that matters."""
        return self.grown_share > _GROWTH

    def leaked_at(self, moments_s: np.ndarray) -> np.ndarray:
        """Blocks lost since the start at some moments, by the trend; 0 where there is none."""
        return self.slope.value * np.maximum(moments_s - self.start_s, 0.0) if self.leaks else 0.0 * moments_s


def floors(service: Service) -> list[Floor]:
    """The floor of every replica whose telemetry tells it; none where blocks or the time are too few."""
    if not service.telemetry_has("blocks_used", "blocks_total") or service.telemetry is None:
        return []
    table = service.telemetry
    if "replica" not in table.columns:
        table = table.with_columns(pl.lit(0).alias("replica"))
    table = table.with_columns(_unexplained(service).alias("_floor"))
    found = (_floor(int(name), part) for (name,), part in table.group_by("replica", maintain_order=True))
    return sorted((floor for floor in found if floor is not None), key=lambda floor: floor.replica)


def _unexplained(service: Service) -> pl.Expr:
    """Blocks held beyond those that written tokens fill; all that are held where that is unknown."""
    if service.block_tokens is None or not service.telemetry_has("used_tokens"):
        return pl.col("blocks_used")
    return (pl.col("blocks_used") - (pl.col("used_tokens") / service.block_tokens).ceil()).clip(lower_bound=0)


def _floor(replica: int, table: pl.DataFrame) -> Floor | None:
    quiet = table
    if "running" in table.columns:
        running = table["running"].fill_null(0)
        quiet = table.filter(running <= running.quantile(0.25))
    window = (pl.col("time_s") / WINDOW_S).floor()
    least = quiet.sort("_floor").group_by(window.alias("window")).first().sort("window")
    if least.height < _LEAST_WINDOWS:
        return None
    time_s, blocks = (least["window"].to_numpy() + 0.5) * WINDOW_S, least["_floor"].to_numpy()
    return Floor(
        replica=replica,
        time_s=time_s,
        blocks=blocks,
        total=float(table["blocks_total"].to_numpy().max()),
        slope=robust_slope(time_s, blocks, SURE),
        start_s=float(table["time_s"][0]),
        end_s=float(table["time_s"][-1]),
    )


def memory_trend(service: Service) -> Finding:
    """Says whether blocks are lost over time.

    Args:
      service: with telemetry of blocks.

    Returns:
      `failures.leak.floor`; rows are buckets of telemetry.
    """
    known = floors(service)
    if not known or service.telemetry is None:
        why = f"it needs telemetry of blocks over at least {_LEAST_WINDOWS} times six hours"
        return not_computed(KEY, "Memory trend net of load", why)
    leaking = [floor for floor in known if floor.leaks]
    shared = np.unique(np.concatenate([floor.time_s for floor in known]))
    floor_blocks = np.sum([np.interp(shared, floor.time_s, floor.blocks) for floor in known], axis=0)
    slope = robust_slope(shared, floor_blocks)
    middle = np.median(floor_blocks - slope.value * shared)
    return Finding(
        key=KEY,
        title=_title(leaking, known),
        rows=service.telemetry.height,
        values={
            "blocks_per_day": slope.value * DAY_S,
            "blocks_per_day_low": slope.low * DAY_S,
            "blocks_per_day_high": slope.high * DAY_S,
            "leaking_replicas": [floor.replica for floor in leaking],
            "pool_blocks": sum(floor.total for floor in known),
            "by_replica": {str(floor.replica): floor.slope.value * DAY_S for floor in known},
        },
        series={"time_s": shared, "floor_blocks": floor_blocks, "trend_blocks": middle + slope.value * shared},
        because=tuple(_sentence(floor) for floor in known),
    )


def per_day(blocks_per_s: float) -> str:
    """A slope in blocks a day, as text."""
    return f"{round(blocks_per_s * DAY_S) + 0:,}"


def _title(leaking: list[Floor], known: list[Floor]) -> str:
    if not leaking:
        return "What is held when nothing runs does not grow: no memory is lost"
    lost = sum(floor.slope.value for floor in leaking) * DAY_S
    share = lost / sum(floor.total for floor in known)
    return f"{lost:,.0f} blocks a day are never given back, {share:.1%} of all, whatever the load"


def _sentence(floor: Floor) -> str:
    slope = floor.slope
    rate = f"{per_day(slope.value)} blocks a day ({per_day(slope.low)} to {per_day(slope.high)})"
    return f"Replica {floor.replica}: the floor moves by {rate}, of {floor.total:,.0f}."
