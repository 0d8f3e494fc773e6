"""Plans priced with measured times of the compiled programs that would run them: the table of our own engine.

A compiled program has one shape: decode rows and chunk tokens, each padded up to a rung of a ladder. What it takes is
known once it has been timed; what is left to a model is its attention, whose time is taken to be linear in the KV
positions read. So a table of a few numbers per program prices every plan, padding included, and nothing is fitted
across programs.

Invariant: of the same plan, `plan_ticks` is what the table says, rounded once. A call of several steps has a part that
each step does not, so k steps in one call cost less than k calls: as they do on the device. Next:
`nanoserve.executors.probe`, which times the programs; `pricing`, which needs no measurement.
"""

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from typing import NamedTuple

from nanoserve.roofline.counts import StepCounts


class Program(NamedTuple):
    """A compiled program: padded decode rows, padded chunk tokens (0: none), and whether it loops over steps."""

    decode_rows: int
    prefill_tokens: int = 0
    loops: bool = False


class ProgramTime(NamedTuple):
    """What a program takes: seconds of a call, of each of its steps, and for each KV position that is read.

    A program that does not loop has one step and no call: what it takes without KV is in `step_s`.
    """

    call_s: float
    step_s: float
    decode_kv_s: float = 0.0
    prefill_kv_s: float = 0.0


class ProgramPricer:
    """Prices plans by program; has what an executor asks of a `pricing.PlanPricer`."""

    call_ticks = 0  # the host's part is in every measured time

    def __init__(self, times: Mapping[Program, ProgramTime], *, ticks_per_s: int = 1 << 60):
        """Takes a table with every program of two ladders: rows alone, tokens alone, and pairs with some of the rows.

        Args:
          times: by program. ticks_per_s: the engine's `TICKS_PER_S`.
        """
        self.times = dict(times)
        self._rows = sorted({program.decode_rows for program in times if program.decode_rows})
        self._rows_beside = sorted({program.decode_rows for program in times if _is_pair(program)})
        self._tokens = sorted({program.prefill_tokens for program in times if program.prefill_tokens})
        self._ticks_per_s = ticks_per_s

    def program_of(self, counts: StepCounts) -> Program:
        """Which program runs a plan; beyond the last rung, which no plan of the same ladders is, the last one."""
        rows = self._rows_beside if counts.prefill_tokens else self._rows
        return Program(_rung(rows, counts.decode_seqs), _rung(self._tokens, counts.prefill_tokens), counts.steps > 1)

    def plan_ticks(self, counts: StepCounts) -> int:
        """Returns the ticks that all steps of a plan take."""
        time = self.times[self.program_of(counts)]
        return self._ticks(
            time.call_s
            + counts.steps * time.step_s
            + counts.decode_kv_tokens * time.decode_kv_s
            + counts.prefill_kv_tokens * time.prefill_kv_s
        )

    def host_ticks(self, counts: StepCounts) -> int:
        """None apart: the host's part is in every measured time."""
        return 0

    def first_step_ticks(self, counts: StepCounts, growth: int) -> int:
        """Returns the ticks of the first step of a plan; the call's own are spread over its steps.

        Args:
          counts: the plan. growth: KV positions that each step attends more than the one before.
        """
        steps = counts.steps
        grown = growth * (steps - 1) / 2 * self.times[self.program_of(counts)].decode_kv_s
        return self.plan_ticks(counts) // steps - self._ticks(grown)

    def steps_before(self, counts: StepCounts, span_ticks: int, growth: int) -> int:
        """Returns how many steps of one call start before `span_ticks` have passed: at least 1.

        Args:
          counts: of the first step alone. span_ticks: > 0. growth: as in `first_step_ticks`.
        """
        looping = Program(_rung(self._rows, counts.decode_seqs), 0, loops=True)
        if looping not in self.times:
            return 1
        time = self.times[looping]
        left = span_ticks - self._ticks(time.call_s)
        first = max(1, self._ticks(time.step_s + counts.decode_kv_tokens * time.decode_kv_s))  # noise may leave nothing
        increment = self._ticks(growth * time.decode_kv_s)
        if left <= 0:
            return 1
        if not increment:
            return -(-left // first)
        # k steps last k first + increment k (k - 1) / 2
        linear = 2 * first - increment
        return max(1, (isqrt(linear * linear + 8 * increment * left) - linear) // (2 * increment) + 1)

    def _ticks(self, seconds: float) -> int:
        return round(seconds * self._ticks_per_s)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One timed call: which program, its steps, the KV positions that it read, and what it took."""

    program: Program
    steps: int
    decode_kv_tokens: int
    prefill_kv_tokens: int
    seconds: float


def program_times(measured: Sequence[Measured]) -> dict[Program, ProgramTime]:
    """Returns the table that timed calls give.

    A program's KV cost is the difference between its calls with the most and the fewest positions; a pair of rows and
    tokens takes those of its parts, and needs one call only. What comes out below zero, which is noise, is none.

    Args:
      measured: calls of each program, one for each setting (a mean, where a setting was timed several times).
    """
    by_program: dict[Program, list[Measured]] = {}
    for each in measured:
        by_program.setdefault(each.program, []).append(each)
    times: dict[Program, ProgramTime] = {}
    for program, calls in sorted(by_program.items(), key=lambda item: _is_pair(item[0])):
        decode_kv_s = _slope(calls, lambda call: call.decode_kv_tokens)
        prefill_kv_s = _slope(calls, lambda call: call.prefill_kv_tokens)
        if _is_pair(program):
            decode_kv_s = times[Program(program.decode_rows)].decode_kv_s
            prefill_kv_s = times[Program(0, program.prefill_tokens)].prefill_kv_s
        rest = [
            (c.steps, c.seconds - c.decode_kv_tokens * decode_kv_s - c.prefill_kv_tokens * prefill_kv_s) for c in calls
        ]
        times[program] = ProgramTime(*_call_and_step(rest), decode_kv_s, prefill_kv_s)
    return times


def _is_pair(program: Program) -> bool:
    return bool(program.decode_rows and program.prefill_tokens)


def _slope(calls: Sequence[Measured], positions: Callable[[Measured], int]) -> float:
    """Seconds per position, between calls of the most steps."""
    most_steps = max(call.steps for call in calls)
    ordered = sorted((call for call in calls if call.steps == most_steps), key=positions)
    low, high = ordered[0], ordered[-1]
    more = positions(high) - positions(low)
    return max(0.0, (high.seconds - low.seconds) / more) if more else 0.0


def _call_and_step(rest: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds of a call and of a step, from (steps, seconds without KV) of calls of one or of two numbers of steps."""
    few, many = min(steps for steps, _ in rest), max(steps for steps, _ in rest)
    few_s, many_s = (_mean([seconds for steps, seconds in rest if steps == wanted]) for wanted in (few, many))
    if few == many:
        return 0.0, max(0.0, many_s / many)
    step_s = min(max(0.0, (many_s - few_s) / (many - few)), max(0.0, many_s / many))
    return max(0.0, many_s - many * step_s), step_s


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rung(ladder: Sequence[int], size: int) -> int:
    return ladder[min(bisect.bisect_left(ladder, size), len(ladder) - 1)] if size else 0
