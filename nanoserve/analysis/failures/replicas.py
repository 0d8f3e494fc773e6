"""Whether a replica is slower than the others under the same load.

A slow engine also runs more requests at a time, so paces cannot be compared as they are. Requests are put into cells by
the time of the log, by how many ran beside them and by how long their context was; only within a cell are the
replicas' medians compared, and cells count by the smaller number of requests. Stretches of time stand for themselves,
and give the interval.

Series of `failures.replicas.pace`: `replica`, `ratio` (time per token over that of the others at equal load),
`ratio_low`, `ratio_high`, `requests`. Next: `causes`.
"""

import dataclasses

import numpy as np
import polars as pl

from nanoserve.analysis.estimate import Estimate
from nanoserve.analysis.failures.intervals import mean_of_blocks
from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.finding import Finding, not_computed

KEY = "failures.replicas.pace"
SLOWER = 1.1  # a replica is called slow when it takes surely more than so many times the others' time
_BLOCKS = 14
_LEAST_ROWS = 100
_LEAST_IN_CELL = 3
_CELL = ("block", "beside", "context")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How one replica compares with the others.

    Attributes:
      replica: its number. ratio: its time per token over theirs, at equal load. requests: of it.
    """

    replica: int
    ratio: Estimate
    requests: int

    @property
    def slow(self) -> bool:
        """Whether it is slower for sure, and by an amount that matters."""
        return self.ratio.low > SLOWER


def paces(loss: Loss) -> list[Pace]:
    """Compares every replica with the others; empty where there is only one, or too little to go by."""
    if not loss.service.has("replica", "ttft_s", "latency_s"):
        return []
    rows = ~np.isnan(loss.tpot_s) & (loss.tpot_s > 0) & (loss.service.replicas >= 0)
    counts = dict(zip(*np.unique(loss.service.replicas[rows], return_counts=True), strict=True))
    if len(counts) < 2 or min(counts.values()) < _LEAST_ROWS:
        return []
    cells = _cells(loss, rows)
    found = ((name, _log_ratios(cells, int(name))) for name in sorted(counts))
    return [
        Pace(replica=int(name), ratio=_ratio(logs), requests=int(counts[name])) for name, logs in found if len(logs) > 2
    ]


def _cells(loss: Loss, rows: np.ndarray) -> pl.DataFrame:
    """Median log pace of every replica in every cell of time, company and context that it has some requests in."""
    tokens = loss.service.floats("prompt_tokens")[rows] + loss.service.floats("response_tokens")[rows]
    start_s = loss.start_s[rows]
    span_s = max(float(np.ptp(start_s)), 1e-9)
    table = pl.DataFrame(
        {
            "replica": loss.service.replicas[rows],
            "block": np.minimum((start_s - start_s[0]) / span_s * _BLOCKS, _BLOCKS - 1).astype(np.int32),
            "beside": np.log2(loss.ahead[rows] + 1).astype(np.int32),
            "context": np.log2(tokens + 1).astype(np.int32),
            "log_pace": np.log(loss.tpot_s[rows]),
        }
    )
    cells = table.group_by(*_CELL, "replica").agg(pl.col("log_pace").median(), pl.len().alias("requests"))
    return cells.filter(pl.col("requests") >= _LEAST_IN_CELL)


def _log_ratios(cells: pl.DataFrame, replica: int) -> np.ndarray:
    """For each block of time, the log of one replica's pace over the median of the others', mean over shared cells."""
    own, others = cells.filter(pl.col("replica") == replica), cells.filter(pl.col("replica") != replica)
    theirs = others.group_by(_CELL).agg(pl.col("log_pace").median(), pl.col("requests").sum())
    shared = own.join(theirs, on=_CELL, suffix="_theirs")
    weight = pl.min_horizontal("requests", "requests_theirs")
    ratio = ((pl.col("log_pace") - pl.col("log_pace_theirs")) * weight).sum() / weight.sum()
    return shared.group_by("block").agg(ratio.alias("ratio")).sort("block")["ratio"].to_numpy()


def _ratio(logs: np.ndarray) -> Estimate:
    found = mean_of_blocks(logs)
    return Estimate(*(float(np.exp(value)) for value in (found.value, found.low, found.high)))


def replica_paces(loss: Loss) -> Finding:
    """Compares the replicas' times per token at equal load.

    Args:
      loss: of the service.

    Returns:
      `failures.replicas.pace`; rows are served requests.
    """
    found = paces(loss)
    if not found:
        why = f"it needs first tokens and at least {_LEAST_ROWS} answers of each of two replicas, over some days"
        return not_computed(KEY, "Replicas compared", why)
    slow = [pace for pace in found if pace.slow]
    return Finding(
        key=KEY,
        title=_title(slow, found),
        rows=sum(pace.requests for pace in found),
        values={
            "slow_replicas": [pace.replica for pace in slow],
            "ratio_by_replica": {str(pace.replica): pace.ratio.value for pace in found},
        },
        series={
            "replica": np.array([pace.replica for pace in found]),
            "ratio": np.array([pace.ratio.value for pace in found]),
            "ratio_low": np.array([pace.ratio.low for pace in found]),
            "ratio_high": np.array([pace.ratio.high for pace in found]),
            "requests": np.array([pace.requests for pace in found]),
        },
        because=("Compared among requests with as many beside them and as long a context; intervals are 95%.",),
    )


def _title(slow: list[Pace], found: list[Pace]) -> str:
    if not slow:
        spread = max(pace.ratio.value for pace in found) - 1
        more = "less than 0.1%" if spread < 0.001 else f"{spread:.1%}"
        return f"No replica is slow: at equal load the slowest takes {more} more per token"
    worst = max(slow, key=lambda pace: pace.ratio.value)
    return f"Replica {worst.replica} takes {worst.ratio.value:.2f} times the others' time per token at equal load"
