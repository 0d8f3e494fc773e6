"""How much of the KV memory that is held has tokens in it, and how much of what is free can be given to one request.

Internal fragmentation: positions held and not written, because a block is not full yet or was reserved for an answer
that may never be so long. External: free blocks that are not in the longest free run, which an allocator of runs cannot
give to one request. Both from telemetry, bucket by bucket; where there is none, the internal part from requests.

Series of `usage.memory.blocks`: `time_s` (start of a stretch), `held`, `written`, `free`, `largest_run`: blocks, mean
over buckets and sum over replicas. Next: `blocks`, what other block sizes would waste.
"""

import numpy as np
import polars as pl

from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.service import Service

KEY = "usage.memory.blocks"
_MOST_POINTS = 336  # half hours of a week
_WANTED = ("blocks_used", "blocks_total", "used_tokens")


def kv_memory(service: Service) -> Finding:
    """Blocks held against written, and both kinds of fragmentation.

    Args:
      service: with telemetry of blocks, or requests that say what they held and wrote.

    Returns:
      `usage.memory.blocks`; rows are buckets of telemetry, or requests.
    """
    if service.block_tokens is None:
        return not_computed(KEY, "KV memory held against written", "nothing says how many tokens a block has")
    if service.telemetry is None or not service.telemetry_has(*_WANTED):
        return _by_requests(service, service.block_tokens)
    table = service.telemetry.with_columns((pl.col("used_tokens") / service.block_tokens).alias("written"))
    held, written = float(table["blocks_used"].sum()), float(table["written"].sum())
    used = written / max(held, 1e-12)
    outside = _external_share(table)
    peak = float(np.nanquantile((table["blocks_used"] / table["blocks_total"]).to_numpy(), 0.99))
    return Finding(
        key=KEY,
        title=f"{used:.0%} of the KV memory that is held has tokens in it; {peak:.0%} of the pool is held at peak",
        rows=table.height,
        values={
            "kv_utilization": used,
            "internal_share": 1 - used,
            "external_share": outside,
            "held_share_mean": held / float(table["blocks_total"].sum()),
            "held_share_peak": peak,
        },
        series=_over_time(table),
        because=_because(used, outside),
    )


def _external_share(table: pl.DataFrame) -> float | None:
    """Of all blocks that were free, those outside the longest run; None where telemetry has no runs."""
    if "largest_free_run_blocks" not in table.columns:
        return None
    free = float((table["blocks_total"] - table["blocks_used"]).sum())
    return 1 - float(table["largest_free_run_blocks"].sum()) / free if free > 0 else 0.0


def _over_time(table: pl.DataFrame) -> dict[str, np.ndarray]:
    """Means over stretches of time, summed over replicas."""
    span_s = float(table["time_s"][-1] - table["time_s"][0])
    stretch_s = max(span_s / _MOST_POINTS, 1e-9)
    stretch = (pl.col("time_s") / stretch_s).floor() * stretch_s
    run = pl.col("largest_free_run_blocks") if "largest_free_run_blocks" in table.columns else pl.lit(np.nan)
    replica = pl.col("replica") if "replica" in table.columns else pl.lit(0)
    means = (
        table.group_by(stretch.alias("time_s"), replica.alias("replica"))
        .agg(
            pl.col("blocks_used").mean().alias("held"),
            pl.col("written").mean(),
            (pl.col("blocks_total") - pl.col("blocks_used")).mean().alias("free"),
            run.mean().alias("largest_run"),
        )
        .group_by("time_s")
        .agg(pl.col("held", "written", "free", "largest_run").sum())
        .sort("time_s")
    )
    return {name: means[name].to_numpy() for name in means.columns}


def _because(used: float, outside: float | None) -> tuple[str, ...]:
    inside = f"Internal fragmentation is {1 - used:.0%} of what is held: reserved, or the rest of a last block."
    if outside is None:
        return (inside, "Telemetry has no free runs, so external fragmentation is unknown.")
    return (inside, f"External fragmentation is {outside:.0%} of what is free: outside the longest free run.")


def _by_requests(service: Service, block_tokens: int) -> Finding:
    """The same from what each request held and wrote at most; how long it did so is not known."""
    if not service.has("allocated_blocks", "used_tokens"):
        why = "neither telemetry nor requests say what was held and written"
        return not_computed(KEY, "KV memory held against written", why)
    rows = service.requests.filter(pl.col("allocated_blocks") > 0)
    held = float(rows["allocated_blocks"].sum()) * block_tokens
    used = float(rows["used_tokens"].sum()) / max(held, 1e-12)
    return Finding(
        key=KEY,
        title=f"{used:.0%} of the KV positions that requests held were written",
        rows=rows.height,
        values={"kv_utilization": used, "internal_share": 1 - used, "external_share": None},
        because=("From the most that each request held; without telemetry there is no course over time.",),
    )
