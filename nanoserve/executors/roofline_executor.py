"""Plans that are priced instead of run: the simulator is the real engine with this executor and a virtual clock.

Invariant: exact. A plan of k steps takes what its steps take one by one, in ticks, so a run does not depend on how
steps are gathered into plans. But for constants of our own stack, where a plan is one call whatever its steps: it waits
for the host once, besides (`Calibration.host_call_s`). Next: `nanoserve.roofline.pricing`.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable

from nanoserve.engine.chunking import most_chunk_tokens
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.types import TICKS_PER_S, MoveKind, Plan, StepResult, to_ticks
from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.pricing import PlanPricer, Pricer
from nanoserve.roofline.transfer import copy_seconds, swap_seconds
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

Padded = Callable[[Plan], StepCounts]
"""A plan -> what goes through the layers, padding included."""

_SWAPS = (MoveKind.OUT, MoveKind.IN)


def one_shape(config: EngineConfig) -> Padded:
    """The padding of a batch-invariant run (`executors.one_shape`): every step has all rows and a whole chunk."""
    rows, chunk_tokens = config.max_seqs, most_chunk_tokens(config)

    def padded(plan: Plan) -> StepCounts:
        return dataclasses.replace(
            plan.counts, decode_seqs=rows, prefill_tokens=chunk_tokens, sampled=rows + min(rows, chunk_tokens)
        )

    return padded


def in_buckets(shape: Callable[[int, int], tuple[int, int]], prefill_rows: int) -> Padded:
    """The padding of an executed run, for a simulation of that very run.

    Args:
      shape: (decoding sequences, chunk tokens) -> both as they are executed (`executors.arrays.Ladders.shape`).
      prefill_rows: rows that a step with chunks samples at most.
    """

    def padded(plan: Plan) -> StepCounts:
        counts = plan.counts
        rows, tokens = shape(counts.decode_seqs, counts.prefill_tokens)
        sampled = counts.steps * rows + min(prefill_rows, tokens)
        return dataclasses.replace(counts, decode_seqs=rows, prefill_tokens=tokens, sampled=sampled)

    return padded


def _with_padding_rows(plan: Plan) -> StepCounts:
    counts, rows = plan.counts, plan.padding_rows
    return dataclasses.replace(
        counts, decode_seqs=counts.decode_seqs + rows, sampled=counts.sampled + counts.steps * rows
    )


class RooflineExecutor:
    """Implements `engine.types.Executor` by pricing. Makes no tokens, so nothing stops before its length."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: ClusterSpec,
        precision: Precision,
        calibration: Calibration,
        pricer: PlanPricer | None = None,
        padded: Padded | None = None,
        slower: float = 1.0,
    ):
        """Takes the pricer, or makes the one of the operation model.

        Args:
          model, cluster, precision, calibration: what is priced, and with which constants.
          pricer: another way to price plans, in ticks of `TICKS_PER_S`.
          padded: what goes through the layers besides, where it is more than `Plan.padding_rows`.
          slower: how many times longer everything takes; a given pricer has that in its ticks already, because only
            whole prices keep k steps equal to k single ones.

        Raises:
          ConfigError: unknown dtype or mesh axis.
        """
        self.pricer = pricer or Pricer(model, cluster, precision, calibration, ticks_per_s=round(TICKS_PER_S * slower))
        self._window_tokens = model.sliding_window_tokens
        self._padded, self._always_padded = padded or _with_padding_rows, padded is not None
        self._slower = slower
        self._swap_seconds = functools.partial(swap_seconds, model, cluster, precision)
        self._copy_seconds = functools.partial(copy_seconds, model, cluster, precision)

    def submit(self, plan: Plan) -> StepResult:
        """Prices a plan. KV that comes from another engine is there: its way was priced where it was sent.

        Raises:
          ConfigError: KV is swapped, and the chip's host link is not published.
        """
        counts, pricer = plan.counts, self.pricer
        duration = pricer.plan_ticks(counts)
        first = duration if plan.horizon == 1 else pricer.first_step_ticks(counts, self._growth(plan))
        result = StepResult(duration, first, pricer.host_ticks(counts))
        if self._always_padded or plan.padding_rows:
            result = self._with_padding(self._padded(plan), counts, result)
        if self.pricer.call_ticks:
            result = self._with_call(result)
        return self._with_moves(plan, result) if plan.moves else result

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """How many decode steps start within `span_ticks`: exact without a sliding window.

        With one, it is not known here which rows still grow; all are taken to, so the answer may be a few steps short.
        """
        if span_ticks is None:
            return sys.maxsize
        return self.pricer.steps_before(counts, span_ticks, growth=counts.decode_seqs)

    def release(self, index: int) -> None:
        """Nothing is held."""

    def __getstate__(self) -> None:
        """For a snapshot: nothing changes in a run."""

    def _with_moves(self, plan: Plan, result: StepResult) -> StepResult:
        """A plan of one step that waits for KV on its way to the host, back, and to other pages, one by one."""
        ticks = result.duration_ticks
        for seconds, kinds in ((self._swap_seconds, _SWAPS), (self._copy_seconds, (MoveKind.COPY,))):
            if tokens := sum(move.tokens for move in plan.moves if move.kind in kinds):
                ticks += to_ticks(self._slower * float(seconds(tokens)))
        return dataclasses.replace(result, duration_ticks=ticks, first_step_ticks=ticks)

    def _with_call(self, result: StepResult) -> StepResult:
        """A plan that is a call of its own: its first step waits for the host once more."""
        ticks = self.pricer.call_ticks
        return dataclasses.replace(
            result,
            duration_ticks=result.duration_ticks + ticks,
            first_step_ticks=result.first_step_ticks + ticks,
            host_ticks=result.host_ticks + ticks,
        )

    def _with_padding(self, padded: StepCounts, counts: StepCounts, result: StepResult) -> StepResult:
        """A step whose padding goes through the layers and the head like the rest, but attends to nothing."""
        step_ticks = (self.pricer.plan_ticks(padded) - result.duration_ticks) // counts.steps
        return dataclasses.replace(
            result,
            duration_ticks=result.duration_ticks + counts.steps * step_ticks,
            first_step_ticks=result.first_step_ticks + step_ticks,
            executed_tokens=padded.new_tokens,
        )

    def _growth(self, plan: Plan) -> int:
        if self._window_tokens is None:
            return plan.counts.decode_seqs
        return sum(row.start + 1 < self._window_tokens for row in plan.rows())
