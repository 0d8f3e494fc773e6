"""Everything that the hypotheses ask of one service's logs, computed once and when first asked for.

Next: `hypotheses`, which weigh it.
"""

import dataclasses
import functools

import numpy as np
import polars as pl

from nanoserve.analysis.failures import oom, shortage
from nanoserve.analysis.failures.kinds import Kind, kinds_of_requests
from nanoserve.analysis.failures.leak import Floor, floors
from nanoserve.analysis.failures.looking import Looking, looking
from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.failures.replicas import Pace, paces
from nanoserve.analysis.failures.shortage import Pool, Reason
from nanoserve.analysis.failures.slots import Ceiling, ceiling
from nanoserve.analysis.service import Service


@dataclasses.dataclass(frozen=True)
class Case:
    """The evidence of one service.

    Attributes:
      service: the logs. Everything else is made from them.
    """

    service: Service

    @functools.cached_property
    def loss(self) -> Loss:
        """What each request lost."""
        return Loss(self.service)

    @functools.cached_property
    def kinds(self) -> np.ndarray:
        """The `Kind` of each request by its status, int8 [N]."""
        return kinds_of_requests(self.service)

    @functools.cached_property
    def looking(self) -> Looking | None:
        """How often engines look for new requests; None where too few came alone."""
        return looking(self.loss)

    @functools.cached_property
    def floors(self) -> list[Floor]:
        """What every replica holds at its quietest."""
        return floors(self.service)

    @functools.cached_property
    def paces(self) -> list[Pace]:
        """How every replica compares with the others."""
        return paces(self.loss)

    @functools.cached_property
    def memory_errors(self) -> pl.DataFrame:
        """Out-of-memory errors that say what the pool was like."""
        return oom.evidence(self.service)

    @functools.cached_property
    def allocated(self) -> np.ndarray:
        """Blocks that each request held, float [N]; NaN where it held none or the log does not say."""
        blocks = self.service.floats("allocated_blocks")
        return np.where(blocks > 0, blocks, np.nan)

    @functools.cached_property
    def written(self) -> np.ndarray:
        """Blocks that each request's tokens needed, float [N]; NaN where unknown."""
        if self.service.block_tokens is None:
            return np.full(len(self.allocated), np.nan)
        blocks = shortage.blocks_of(self.service.floats("used_tokens"), self.service.block_tokens)
        return np.where(np.isnan(self.allocated), np.nan, np.minimum(blocks, self.allocated))

    @functools.cached_property
    def reserved_share(self) -> float:
        """Of all blocks that requests held, those in which nothing was ever written; NaN where unknown."""
        known = ~np.isnan(self.written)
        return float(1 - self.written[known].sum() / self.allocated[known].sum()) if known.any() else float("nan")

    @functools.cached_property
    def held_share(self) -> float:
        """Share of all pools that requests hold, mean over the log, by what each held and how long; 0 where unknown."""
        if not self.service.has("latency_s", "allocated_blocks"):
            return 0.0
        pools = self.total_blocks * len(np.unique(self.service.replicas))
        span_s = np.nanmax(self.loss.end_s) - self.loss.start_s.min()
        held = np.nansum(self.allocated * np.maximum(self.loss.latency_s - self.loss.waited_s, 0.0))
        return float(np.nan_to_num(held / (pools * span_s)))

    @functools.cached_property
    def scattered_share(self) -> float:
        """Of the buckets in which blocks are free, those in which they are not in one run; NaN where unknown."""
        table = self.service.telemetry
        if table is None or not self.service.telemetry_has("blocks_used", "blocks_total", "largest_free_run_blocks"):
            return float("nan")
        free = (table["blocks_total"] - table["blocks_used"]).to_numpy()
        runs = table["largest_free_run_blocks"].to_numpy()
        return float((runs < free)[free > 0].mean()) if (free > 0).any() else float("nan")

    @functools.cached_property
    def total_blocks(self) -> float:
        """Blocks of one replica's pool, by telemetry or by an error; NaN where neither says."""
        if self.service.telemetry is not None and self.service.telemetry_has("blocks_total"):
            return float(self.service.telemetry["blocks_total"].to_numpy().max())
        return float(self.memory_errors["total"].to_numpy().max()) if self.memory_errors.height else float("nan")

    @functools.cached_property
    def reasons(self) -> np.ndarray | None:
        """Whether and why memory was short when each request waited or failed, int [N]; None where unknown."""
        if np.isnan(self.total_blocks) or np.isnan(self.reserved_share) or not self.service.has("latency_s"):
            return None
        return self._pool().reasons()

    def lost_to(self, reason: Reason) -> float:
        """What being blocked and failing for one reason cost, out-of-memory errors aside; mean over all requests."""
        if self.reasons is None:
            return 0.0
        rows = (self.reasons == reason) & (self.kinds != Kind.OUT_OF_MEMORY) & ~self.waited_for_slots
        return float((self.blocked_or_failed * rows).mean())

    @functools.cached_property
    def ceiling(self) -> Ceiling | None:
        """The most that decode at once, and who waited under it; None where too few were blocked to tell."""
        return ceiling(self.loss) if self.service.has("ttft_s", "latency_s") else None

    @property
    def waited_for_slots(self) -> np.ndarray:
        """Which requests waited, or timed out, for no other reason than that no more may run; bool [N]."""
        if self.ceiling is None or not self.ceiling.binds:
            return np.broadcast_to(False, self.service.requests.height)
        return self.ceiling.under & (self.kinds != Kind.OUT_OF_MEMORY)

    @functools.cached_property
    def blocked_or_failed(self) -> np.ndarray:
        """What each request would not have lost, had it not failed, or not waited for more than work in line; [N]."""
        return np.where(self.service.failed, self.loss.of_failing, self.loss.spared(self.loss.blocked_s))

    def lost_to_errors(self) -> dict[str, float]:
        """What running out of memory cost, by the kind of shortage that the errors state; mean over all requests."""
        share = self.loss.of_failing * float((self.kinds == Kind.OUT_OF_MEMORY).mean()) if len(self.kinds) else 0.0
        lines = self.memory_errors
        if not lines.height:
            return dict.fromkeys(oom.KINDS, 0.0) | {"full": share}
        kinds = oom.shortage_kinds(lines, 1 - float(np.nan_to_num(self.reserved_share))).to_numpy()
        return {kind: share * float(np.mean(kinds == kind)) for kind in oom.KINDS}

    def _pool(self) -> Pool:
        """The pool of each request's replica in the middle of its wait."""
        loss, moments_s = self.loss, shortage.in_wait_s(self.loss)
        held, written = np.nan_to_num(self.allocated), np.nan_to_num(self.written)
        tokens = self.service.floats("prompt_tokens") + np.nanmedian(self.service.floats("response_tokens"))
        guess = shortage.blocks_of(tokens, self.service.block_tokens or 1)
        return Pool(
            total=np.full(len(held), self.total_blocks),
            held=shortage.held_blocks(loss, moments_s, held),
            written=shortage.held_blocks(loss, moments_s, written),
            leaked=self._leaked(moments_s),
            need=np.where(held > 0, held, guess / max(1 - self.reserved_share, 1e-9)),
            need_written=np.where(held > 0, written, guess),
        )

    def _leaked(self, moments_s: np.ndarray) -> np.ndarray:
        leaked = np.zeros(len(moments_s))
        for floor in self.floors:
            own = self.service.replicas == floor.replica if len(self.floors) > 1 else slice(None)
            leaked[own] = floor.leaked_at(moments_s[own])
        return leaked
