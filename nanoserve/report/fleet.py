"""A run of several engines, told apart: what each did, and what each pool of them costs.

Only a fleet's tables of records say which engine did what (`engine.records.FLEET_COLUMNS`). Next: `content`, whose
tables are of all engines together.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nanoserve.report import units
from nanoserve.report.content import Table
from nanoserve.report.metrics import Summary, plan_columns, useful_tokens
from nanoserve.roofline.economy import economy
from nanoserve.specs.chips import ClusterSpec

if TYPE_CHECKING:
    import polars as pl


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolShare:
    """Replicas that are alike.

    Attributes:
      name: `prefill` or `decode`; empty where one pool does both. cluster: the chips of all its replicas.
    """

    name: str
    cluster: ClusterSpec

    @property
    def replicas(self) -> int:
        """Engines."""
        return self.cluster.mesh.get("data", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineLoad:
    """What one engine of a fleet did.

    Attributes:
      replica, pool: which. prefill_tokens, decode_tokens: that went through its layers.
      busy_fraction: time in plans / duration of the run. mfu, mbu: means over its busy time, NaN where it did nothing.
      pages_used_peak: share of its pages. preemptions: on it.
    """

    replica: int
    pool: str
    prefill_tokens: int
    decode_tokens: int
    busy_fraction: float
    mfu: float
    mbu: float
    pages_used_peak: float
    preemptions: int


def engine_loads(steps: "pl.DataFrame", pools: Sequence[PoolShare], duration_s: float) -> list[EngineLoad]:
    """What each engine did, in the order of their numbers.

    Args:
      steps: `records.STEP_COLUMNS`, `COST_COLUMNS` and `FLEET_COLUMNS`. pools: in the order of their replicas.
      duration_s: of the run.
    """
    plans = plan_columns(steps)
    names = [pool.name for pool in pools for _ in range(pool.replicas)]
    return [
        _load(
            {column: values[plans["replica"] == replica] for column, values in plans.items()}, replica, name, duration_s
        )
        for replica, name in enumerate(names)
    ]


def engine_table(loads: Sequence[EngineLoad]) -> Table:
    """One row an engine."""
    rows = [
        (
            f"{load.pool} {load.replica}".strip(),
            units.count(load.prefill_tokens),
            units.count(load.decode_tokens),
            units.share(load.busy_fraction),
            units.share(load.mfu),
            units.share(load.mbu),
            units.share(load.pages_used_peak),
            units.count(load.preemptions),
        )
        for load in loads
    ]
    header = ("replica", "prompt tokens", "decoded tokens", "busy", "MFU", "MBU", "pages, peak", "preemptions")
    return Table(header, rows)


def pool_table(pools: Sequence[PoolShare], loads: Sequence[EngineLoad], summary: Summary) -> Table:
    """One row a pool: chips, how busy they are, and what they cost for each output token of the run."""
    rows, usd, joules = [], [], []
    for pool in pools:
        costs = economy(pool.cluster, summary.output_tokens_per_s / pool.replicas)
        usd.append(costs.usd_per_million_tokens)
        joules.append(costs.joules_per_token_at_most)
        busy = float(np.mean([load.busy_fraction for load in loads if load.pool == pool.name]))
        chips = f"{pool.cluster.count} x {pool.cluster.chip.name}"
        rows.append((pool.name or "all", chips, units.share(busy), *_costs(usd[-1:], joules[-1:])))
    if len(pools) > 1:
        rows.append(("both", "", "", *_costs(usd, joules)))
    return Table(("pool", "chips", "busy", "USD per million output tokens", "J per output token, at most"), rows)


def _load(plans: dict[str, np.ndarray], replica: int, pool: str, duration_s: float) -> EngineLoad:
    busy_s = plans["duration_s"].sum()
    mfu, mbu = (
        float((plans[name] * plans["duration_s"]).sum() / busy_s) if busy_s else np.nan for name in ("mfu", "mbu")
    )
    prefill_tokens = int(plans["prefill_tokens"].sum())
    return EngineLoad(
        replica=replica,
        pool=pool,
        prefill_tokens=prefill_tokens,
        decode_tokens=int(useful_tokens(plans).sum()) - prefill_tokens,
        busy_fraction=units.ratio(float(busy_s), duration_s),
        mfu=mfu,
        mbu=mbu,
        pages_used_peak=float((plans["pages_used"] / plans["pages_total"]).max(initial=0.0)),
        preemptions=int(plans["preemptions"].sum()),
    )


def _costs(usd: Sequence[float | None], joules: Sequence[float | None]) -> Iterator[str]:
    """Sums as text; a price or power that is not published leaves the sum unknown."""
    for parts in (usd, joules):
        yield "–" if None in parts else units.significant(sum(part for part in parts if part is not None))
