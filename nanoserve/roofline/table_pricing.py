"""Plans priced by measured tables, in whole ticks.

All but attention depends on a step's composition alone, as it does for `pricing.Pricer`, which prices it here too.
Decode attention by a table is a chain of straight lines over the KV positions attended, one from each measured context
to the next (`table.Table`); each line is rounded to integer ticks once, so sums over steps are integer arithmetic. A
prompt's chunks are looked up each time.

Invariants: `plan_ticks` of a plan of k steps is the sum over its steps, exactly. Ticks and `timing.step_time` agree but
for rounding, for a plan of one step; in a longer one `timing` prices its mean context. Next: `pricing`, `table`.
"""

import bisect
import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from nanoserve.roofline.calibration import Calibration, Kernel
from nanoserve.roofline.counts import Count, StepCounts
from nanoserve.roofline.op import Op
from nanoserve.roofline.ops import prefill_attention, step_ops
from nanoserve.roofline.pricing import PlanPricer, Pricer
from nanoserve.roofline.table import Table
from nanoserve.roofline.timing import op_times
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

_FREE = Kernel(0.0, math.inf, math.inf)
_BEYOND = 1 << 20  # further contexts of the last line


class Line(NamedTuple):
    """Decode attention from `start` KV positions on: `ticks` there, and `slope` more for each one further."""

    start: int
    ticks: int
    slope: int


def pricer_for(
    model: ModelSpec,
    cluster: ClusterSpec,
    precision: Precision,
    calibration: Calibration,
    *,
    ticks_per_s: int = 1 << 60,
) -> PlanPricer:
    """Returns what prices plans with these constants: by a table where attention of the model is in one.

    Raises:
      ConfigError: unknown dtype or mesh axis.
    """
    table = calibration.table
    if isinstance(table, Table) and table.decode_contexts_of(_decode_op(model, cluster, precision, rows=1, attended=1)):
        return TablePricer(model, cluster, precision, calibration, table, ticks_per_s=ticks_per_s)
    return Pricer(model, cluster, precision, calibration, ticks_per_s=ticks_per_s)


class TablePricer:
    """Prices plans of one model on one cluster; implements `pricing.PlanPricer`."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: ClusterSpec,
        precision: Precision,
        calibration: Calibration,
        table: Table,
        *,
        ticks_per_s: int,
    ):
        """Takes a table that has decode attention of the model.

        Args:
          model, cluster, precision, calibration: what is priced, and with which constants and table.
          table: the calibration's. ticks_per_s: the engine's `TICKS_PER_S`.
        """
        self.model, self.cluster, self.precision, self.calibration = model, cluster, precision, calibration
        self._table, self._ticks_per_s = table, ticks_per_s
        others = dataclasses.replace(
            calibration, decode_attention=_FREE, prefill_attention=_FREE, table=table.without_attention()
        )
        self._others = Pricer(model, cluster, precision, others, ticks_per_s=ticks_per_s)
        self._lines = functools.cache(self._price_lines)
        self.host_ticks, self.call_ticks = self._others.host_ticks, self._others.call_ticks

    def plan_ticks(self, counts: StepCounts) -> int:
        """Returns the ticks that all steps of a plan take."""
        steps, rows = counts.steps, counts.decode_seqs
        ticks = self._others.plan_ticks(counts)
        if rows:
            ticks += self._decode_ticks(rows, _first(counts, rows), steps)
        return ticks + self._chunk_ticks(counts) if counts.prefill_tokens else ticks

    def first_step_ticks(self, counts: StepCounts, growth: int) -> int:
        """Returns the ticks of a plan's first step; `growth` is the number of decode rows, as no window is priced."""
        if counts.steps == 1:
            return self.plan_ticks(counts)
        return self.plan_ticks(_one_step(counts, _first(counts, growth)))

    def steps_before(self, counts: StepCounts, span_ticks: int, growth: int) -> int:
        """Returns the least number of steps, at least 1, that last `span_ticks`; `counts` are of the first."""
        rows, first = counts.decode_seqs, counts.decode_kv_tokens
        others = self._others.plan_ticks(counts)

        def lasting(steps: int) -> int:
            return steps * others + self._decode_ticks(rows, first, steps)

        enough = 1
        while lasting(enough) < span_ticks:
            enough *= 2
        return bisect.bisect_left(range(1, enough + 1), span_ticks, key=lasting) + 1

    def _decode_ticks(self, rows: int, attended: int, steps: int) -> int:
        """Decode attention of `steps` steps: the first attends `attended` positions, each further one `rows` more."""
        lines = self._lines(rows)
        starts = [line.start for line in lines]
        total, at = 0, max(0, bisect.bisect_right(starts, attended) - 1)
        while steps:
            line = lines[at]
            reach = steps if at + 1 == len(lines) else min(steps, -(-(lines[at + 1].start - attended) // rows))
            total += reach * line.ticks + line.slope * (
                reach * (attended - line.start) + rows * (reach * (reach - 1) // 2)
            )
            attended, steps, at = attended + reach * rows, steps - reach, at + 1
        return total

    def _price_lines(self, rows: int) -> tuple[Line, ...]:
        """The chain of lines of a batch, from each measured context to the next and on from the last one."""
        contexts = self._table.decode_contexts_of(self._decode_op(rows, rows))
        starts = rows * np.array([*contexts, contexts[-1] + _BEYOND])
        seconds = op_times(self._decode_op(rows, starts), self.cluster, self.calibration).total
        ticks = [round(one * self._ticks_per_s) for one in seconds.tolist()]
        starts = starts.tolist()
        slopes = [round((ticks[i + 1] - ticks[i]) / (starts[i + 1] - starts[i])) for i in range(len(contexts))]
        return tuple(map(Line, starts, ticks, slopes))

    def _decode_op(self, rows: int, attended: Count) -> Op:
        return _decode_op(self.model, self.cluster, self.precision, rows, attended)

    def _chunk_ticks(self, counts: StepCounts) -> int:
        op = prefill_attention(self.model, self.cluster, self.precision, counts)
        return round(float(op_times(op, self.cluster, self.calibration).total) * self._ticks_per_s)


def _decode_op(model: ModelSpec, cluster: ClusterSpec, precision: Precision, rows: int, attended: Count) -> Op:
    ops = step_ops(model, cluster, precision, StepCounts(decode_seqs=rows, decode_kv_tokens=attended))
    (op,) = (op for op in ops if op.kind == "attention_decode")
    return op


def _first(counts: StepCounts, growth: int) -> int:
    """KV positions that the first step of a plan attends."""
    return (counts.decode_kv_tokens - growth * (counts.steps * (counts.steps - 1) // 2)) // counts.steps


def _one_step(counts: StepCounts, attended: int) -> StepCounts:
    return dataclasses.replace(
        counts,
        steps=1,
        decode_kv_tokens=attended,
        decode_window_tokens=attended,
        sampled=counts.sampled // counts.steps,
    )
