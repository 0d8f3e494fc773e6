"""Steps priced in whole ticks, so that k steps at once cost exactly what k steps one by one cost.

A decode step of a given composition takes `fixed + slope x S` ticks, S the KV positions its rows attend: everything but
reading KV depends on the composition alone, and reading is linear (see `timing`). Both constants are rounded to
integers once; after that there is only integer arithmetic. Layers with a sliding window have a slope and an S of their
own. S grows by the same number each step within a plan, so a plan of k steps is `k fixed + slope x (sum of S)`, and the
number of steps before an event is the root of a quadratic.

The fixed part is priced by `ops` and `timing` once for every (decode rows, chunk tokens, sampled rows), in three parts
that add up: what all tokens go through, the head on sampled rows, and decode attention but for reading. An operation of
another kind must depend on one of those three numbers alone, or get a term of its own here. The attention of chunks has
one: it depends on what came before them, so it is new nearly every time (`ChunkAttention`).

Invariant: `plan_ticks` of a plan of k steps equals the sum over its steps. Ticks and `timing.step_time` agree but for
rounding: two ticks a step, half a tick a KV position. Next: `nanoserve.executors.roofline_executor`.
"""

import dataclasses
import functools
from collections.abc import Iterable
from math import isqrt
from typing import Protocol

import numpy as np

from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.ops import Op, decode_attention, prefill_attention, step_ops
from nanoserve.roofline.timing import op_times, step_time
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

_MANY = 1 << 40  # so many positions, FLOPs or bytes that what one of them takes is all there is to see
_BLOCK = 256  # token counts priced together
_HEAD_OPS = ("head", "sample", "gather_logits", "host_rows")
_ATTENTION_OPS = ("attention_decode", "attention_prefill")


class PlanPricer(Protocol):
    """Prices plans in ticks: what `RooflineExecutor` asks for. `Pricer` is the one of the operation model.

    Attributes:
      call_ticks: what a plan waits for the host besides, however many steps it has; not in `plan_ticks`.
    """

    call_ticks: int

    def host_ticks(self, counts: StepCounts) -> int:
        """Returns the part of a plan's ticks in which the device waits for the host."""
        ...

    def plan_ticks(self, counts: StepCounts) -> int:
        """Returns the ticks that all steps of a plan take: the sum of what they take one by one."""
        ...

    def first_step_ticks(self, counts: StepCounts, growth: int) -> int:
        """Returns the ticks of a plan's first step; each attends `growth` KV positions more than the one before."""
        ...

    def steps_before(self, counts: StepCounts, span_ticks: int, growth: int) -> int:
        """Returns how many steps, at least 1, start before `span_ticks` have passed; `counts` are of the first."""
        ...


class Pricer:
    """Prices plans of one model on one cluster, by its operations."""

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
          ConfigError: unknown dtype or mesh axis.
        """
        self.model, self.cluster, self.precision, self.calibration = model, cluster, precision, calibration
        self._what = model, cluster, precision
        self._ticks_per_s = ticks_per_s
        self._fixed_ticks = functools.cache(self._price_fixed)
        self._layer_block = functools.cache(self._price_layers)
        self._head_ticks = functools.cache(self._price_head)
        self._rows_ticks = functools.cache(self._price_rows)
        self._chunk_attention = ChunkAttention(model, cluster, precision, calibration)
        self._full_slope = self._price_slope("decode_kv_tokens")
        self._window_slope = self._price_slope("decode_window_tokens")
        self._gap_ticks, self._row_ticks = self._ticks(calibration.host_gap_s), self._ticks(calibration.host_row_s)
        self.call_ticks = self._ticks(calibration.host_call_s)

    def host_ticks(self, counts: StepCounts) -> int:
        """Returns what a plan waits for the host: a gap every step, and something for each row that is sampled."""
        return counts.steps * self._gap_ticks + counts.sampled * self._row_ticks

    def plan_ticks(self, counts: StepCounts) -> int:
        """Returns the ticks that all steps of a plan take."""
        steps, chunk_tokens, drafted = counts.steps, counts.prefill_tokens, counts.drafted_tokens
        ticks = steps * self._fixed_ticks(counts.decode_seqs, chunk_tokens + drafted, counts.sampled // steps)
        ticks += self._full_slope * counts.decode_kv_tokens + self._window_slope * counts.decode_window_tokens
        if drafted:
            ticks += self._drafted_ticks(counts)
        if chunk_tokens:
            ticks += round(self._chunk_attention.seconds(counts) * self._ticks_per_s)
        return ticks

    def first_step_ticks(self, counts: StepCounts, growth: int) -> int:
        """Returns the ticks of the first step of a plan.

        Args:
          counts: the plan.
          growth: KV positions that a layer with a sliding window attends more each step than the one before: the rows
            whose window is not yet full. A layer without one attends one more a row.
        """
        steps = counts.steps
        if steps == 1:
            return self.plan_ticks(counts)
        grown = self._reading(counts.decode_seqs, growth) * (steps * (steps - 1) // 2)
        reading = self._reading(counts.decode_kv_tokens, counts.decode_window_tokens) - grown
        return self._fixed_ticks(counts.decode_seqs, counts.prefill_tokens, counts.sampled // steps) + reading // steps

    def steps_before(self, counts: StepCounts, span_ticks: int, growth: int) -> int:
        """Returns how many steps start before `span_ticks` have passed: the least k >= 1 that lasts at least as long.

        Args:
          counts: of the first step alone. span_ticks: > 0.
          growth: as in `first_step_ticks`; one above the real one gives fewer steps, never more.
        """
        first, increment = self.plan_ticks(counts), self._reading(counts.decode_seqs, growth)
        if increment == 0:
            return max(1, -(-span_ticks // first))
        # k steps last k first + increment k (k - 1) / 2; the positive root of that, rounded down, is never too many
        linear = 2 * first - increment
        steps = max(1, (isqrt(linear * linear + 8 * increment * span_ticks) - linear) // (2 * increment))
        while _lasting(steps, first, increment) < span_ticks:
            steps += 1
        return steps

    def _drafted_ticks(self, counts: StepCounts) -> int:
        """What decode attention takes longer for drafted tokens, beyond reading the same positions."""
        alone = dataclasses.replace(counts, drafted_tokens=0, drafted_pairs=0, drafted_window_pairs=0)
        seconds = [self._attention_s(decode_attention(*self._what, one)) for one in (counts, alone)]
        return self._ticks(seconds[0] - seconds[1])

    def _reading(self, positions: int, window_positions: int) -> int:
        """Ticks to read KV: positions in layers that attend in full, and in those with a sliding window."""
        return self._full_slope * positions + self._window_slope * window_positions

    def _ticks(self, seconds: float) -> int:
        return round(seconds * self._ticks_per_s)

    def _ops(self, counts: StepCounts) -> tuple[Op, ...]:
        return step_ops(*self._what, counts)

    def _price_fixed(self, rows: int, chunk_tokens: int, sampled: int) -> int:
        """One step without the KV that decode reads and without the chunks' attention."""
        block, place = divmod(rows + chunk_tokens, _BLOCK)
        return self._layer_block(block)[place] + self._head_ticks(sampled) + self._rows_ticks(rows)

    def _price_layers(self, block: int) -> list[int]:
        """Everything but attention and what follows the last layer; a whole block of token counts in one call."""
        ops = self._ops(StepCounts(prefill_tokens=block * _BLOCK + np.arange(_BLOCK)))
        layers = [op for op in ops if op.name not in _HEAD_OPS + _ATTENTION_OPS]
        return [self._ticks(seconds) for seconds in step_time(layers, self.cluster, self.calibration).tolist()]

    def _price_head(self, sampled: int) -> int:
        """From the last layer to the tokens."""
        return self._sum(op for op in self._ops(StepCounts(sampled=sampled)) if op.name in _HEAD_OPS)

    def _price_rows(self, rows: int) -> int:
        """Decode attention except for reading."""
        return self._sum(op for op in self._ops(StepCounts(decode_seqs=rows)) if op.name == "attention_decode")

    def _sum(self, ops: Iterable[Op]) -> int:
        return self._ticks(step_time(ops, self.cluster, self.calibration))

    def _price_slope(self, field: str) -> int:
        """Ticks per KV position that a decode row attends in layers of one kind; 0 where the model has none of them."""
        seconds = [self._decode_attention_s(StepCounts(**{field: tokens})) for tokens in (0, _MANY)]
        return self._ticks((seconds[1] - seconds[0]) / _MANY)

    def _decode_attention_s(self, counts: StepCounts) -> float:
        return self._attention_s(decode_attention(*self._what, counts))

    def _attention_s(self, op: Op) -> float:
        return op_times(op, self.cluster, self.calibration).total


class ChunkAttention:
    """The attention of a step's prompt chunks: `timing` of `ops.prefill_attention`, made ready to be priced often.

    FLOPs and bytes are linear in tokens, query-key pairs and KV positions. How many for one of each is asked of `ops`
    once, and of `timing` how long one takes. What is left for each step is the rule of `timing`: the longer of
    computing and moving, and what the kernel does not hide of the shorter.
    """

    def __init__(self, model: ModelSpec, cluster: ClusterSpec, precision: Precision, calibration: Calibration):
        """Asks what a token, a pair and a position take."""

        def op(**counts: int) -> Op:
            return prefill_attention(model, cluster, precision, StepCounts(prefill_seqs=1, **counts))

        def seconds(**work: int) -> float:
            return op_times(dataclasses.replace(op(), **work), cluster, calibration).total

        self._shown = 1 - calibration.prefill_attention.overlap
        self._overhead_s = seconds()
        flop_s = (seconds(flops=_MANY) - self._overhead_s) / _MANY
        byte_s = (seconds(kv_read_bytes=_MANY) - self._overhead_s) / _MANY

        def both_s(*ones: Op) -> tuple[list[float], list[float]]:
            moved = [one.kv_read_bytes + one.kv_write_bytes + one.activation_bytes for one in ones]
            return [one.flops * flop_s for one in ones], [size * byte_s for size in moved]

        whole = op(prefill_tokens=1), op(prefill_pairs=1), op(prefill_kv_tokens=1)
        self._computing_s, self._moving_s = both_s(*whole)
        computing_s, moving_s = both_s(op(prefill_window_pairs=1), op(prefill_window_kv_tokens=1))
        self._window_s = *computing_s, *moving_s
        self._windowed = any(self._window_s)

    def seconds(self, counts: StepCounts) -> float:
        """Returns the seconds of one step's chunks, of which there is at least one."""
        tokens, pairs, positions = counts.prefill_tokens, counts.prefill_pairs, counts.prefill_kv_tokens
        a, b, c = self._computing_s
        computing_s = a * tokens + b * pairs + c * positions
        a, b, c = self._moving_s
        moving_s = a * tokens + b * pairs + c * positions
        if self._windowed:
            pairs, positions = counts.prefill_window_pairs, counts.prefill_window_kv_tokens
            a, b, c, d = self._window_s
            computing_s, moving_s = computing_s + a * pairs + b * positions, moving_s + c * pairs + d * positions
        longer_s, shorter_s = (computing_s, moving_s) if computing_s > moving_s else (moving_s, computing_s)
        return self._overhead_s + longer_s + self._shown * shorter_s


def _lasting(steps: int, first: int, increment: int) -> int:
    return steps * first + increment * (steps * (steps - 1) // 2)
