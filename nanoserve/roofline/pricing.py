"""Steps priced in whole ticks, so that k steps at once cost exactly what k steps one by one cost.

A decode step of a given composition takes `fixed + slope x S` ticks, S the KV positions its rows attend: everything but
reading KV depends on the composition alone, and reading is linear (see `timing`). Both constants are rounded to
integers once; after that there is only integer arithmetic. S grows by the same number each step within a plan, so a
plan of k steps is `k fixed + slope x (sum of S)`, and the number of steps before an event is the root of a quadratic.

Invariant: `plan_ticks` of a plan of k steps equals the sum over its steps. Ticks and `timing.step_time` agree but for
rounding: two ticks a step, half a tick a KV position. Next: `nanoserve.executors.roofline_executor`.
"""

import functools
from collections.abc import Iterable
from math import isqrt

from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.ops import Op, prefill_attention, step_ops
from nanoserve.roofline.timing import op_times, step_time
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

_SLOPE_TOKENS = 1 << 20  # so many positions that the slope is all there is to round
_HEAD_OPS = ("head", "sample", "gather_logits")
_ATTENTION_OPS = ("attention_decode", "attention_prefill")


class Pricer:
    """Prices plans of one model on one cluster."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: ClusterSpec,
        precision: Precision,
        calibration: Calibration,
        *,
        ticks_per_s: int = 1 << 60,
    ):
        """Prepares the slope; fixed parts are priced when first asked for, and kept.

        Args:
          model, cluster, precision, calibration: what is priced, and with which constants.
          ticks_per_s: the engine's `TICKS_PER_S`.

        Raises:
          ConfigError: unknown dtype, or a mesh axis other than `tensor`.
        """
        self.model, self.cluster, self.precision, self.calibration = model, cluster, precision, calibration
        self._ticks_per_s = ticks_per_s
        self._windowed = model.sliding_window_tokens is not None
        self._fixed: dict[tuple[int, int, int], int] = {}
        self._layer_ticks = functools.cache(self._price_layers)
        self._head_ticks = functools.cache(self._price_head)
        self._rows_ticks = functools.cache(self._price_rows)
        self._slope = self._price_slope()
        self.host_ticks = self._ticks(calibration.host_gap_s)  # per step, part of `fixed`

    def plan_ticks(self, counts: StepCounts) -> int:
        """Returns the ticks that all steps of a plan take."""
        attended = counts.decode_window_tokens if self._windowed else counts.decode_kv_tokens
        ticks = counts.steps * self._fixed_ticks(counts) + self._slope * attended
        return ticks + self._chunk_ticks(counts) if counts.prefill_tokens else ticks

    def first_step_ticks(self, counts: StepCounts, growth: int) -> int:
        """Returns the ticks of the first step of a plan.

        Args:
          counts: the plan.
          growth: KV positions that each step attends more than the one before: the decode rows whose window, if the
            model has one, is not yet full.
        """
        steps = counts.steps
        if steps == 1:
            return self.plan_ticks(counts)
        attended = counts.decode_window_tokens if self._windowed else counts.decode_kv_tokens
        first = (attended - growth * (steps * (steps - 1) // 2)) // steps
        return self._fixed_ticks(counts) + self._slope * first

    def steps_before(self, counts: StepCounts, span_ticks: int, growth: int) -> int:
        """Returns how many steps start before `span_ticks` have passed: the least k >= 1 that lasts at least as long.

        Args:
          counts: of the first step alone. span_ticks: > 0.
          growth: as in `first_step_ticks`; one above the real one gives fewer steps, never more.
        """
        first, increment = self.plan_ticks(counts), self._slope * growth
        if increment == 0:
            return max(1, -(-span_ticks // first))
        # k steps last k first + increment k (k - 1) / 2; the positive root of that, rounded down, is never too many
        linear = 2 * first - increment
        steps = max(1, (isqrt(linear * linear + 8 * increment * span_ticks) - linear) // (2 * increment))
        while _lasting(steps, first, increment) < span_ticks:
            steps += 1
        return steps

    def _ticks(self, seconds: float) -> int:
        return round(seconds * self._ticks_per_s)

    def _ops(self, counts: StepCounts) -> tuple[Op, ...]:
        return step_ops(self.model, self.cluster, self.precision, counts)

    def _fixed_ticks(self, counts: StepCounts) -> int:
        """One step without the KV that decode reads and without the chunks' attention."""
        key = (counts.decode_seqs, counts.prefill_tokens, counts.sampled // counts.steps)
        ticks = self._fixed.get(key)
        if ticks is None:
            rows, chunk, sampled = key
            ticks = self._layer_ticks(rows + chunk) + self._head_ticks(sampled) + self._rows_ticks(rows)
            self._fixed[key] = ticks
        return ticks

    def _price_layers(self, tokens: int) -> int:
        """Everything but attention and what follows the last layer."""
        ops = self._ops(StepCounts(prefill_tokens=tokens))
        return self._sum(op for op in ops if op.name not in _HEAD_OPS + _ATTENTION_OPS)

    def _price_head(self, sampled: int) -> int:
        """From the last layer to the tokens."""
        return self._sum(op for op in self._ops(StepCounts(sampled=sampled)) if op.name in _HEAD_OPS)

    def _price_rows(self, rows: int) -> int:
        """Decode attention except for reading."""
        return self._sum(op for op in self._ops(StepCounts(decode_seqs=rows)) if op.name == "attention_decode")

    def _chunk_ticks(self, counts: StepCounts) -> int:
        """The chunks' attention: it depends on how long they are and what came before, so it is priced each time."""
        return self._sum([prefill_attention(self.model, self.cluster, self.precision, counts)])

    def _sum(self, ops: Iterable[Op]) -> int:
        return self._ticks(step_time(ops, self.cluster, self.calibration))

    def _price_slope(self) -> int:
        """Ticks per KV position that a decode row attends: what the attention of many costs, less the same of none."""
        seconds = [self._decode_attention_s(tokens) for tokens in (0, _SLOPE_TOKENS)]
        return self._ticks((seconds[1] - seconds[0]) / _SLOPE_TOKENS)

    def _decode_attention_s(self, tokens: int) -> float:
        counts = StepCounts(decode_kv_tokens=tokens, decode_window_tokens=tokens)
        (op,) = (op for op in self._ops(counts) if op.kind == "attention_decode")
        return op_times(op, self.cluster, self.calibration).total


def _lasting(steps: int, first: int, increment: int) -> int:
    return steps * first + increment * (steps * (steps - 1) // 2)
