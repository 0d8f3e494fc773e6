"""Speculation, simulated: how many guesses are right is drawn, and what guessing and verifying cost is priced.

A run makes no tokens here, so the config says how often a guess is right when those before it were
(`Engine.draft_acceptance`). Whether one is right depends on the seed, the request and the position alone, so a run
repeats itself, and a request gains the same tokens whatever the schedule. No position is asked twice: what follows the
first wrong guess is looked at by nobody, and the next step begins behind it. So steps gain what Leviathan et al. expect
(`roofline.speculative.expected_tokens`), where a row drafts all it may.

A draft model costs its own steps: one for each guess and one more, for all rows together, and the plan's chunks. They
are one call, so the device waits for the host once. A look-up costs the device nothing.

Next: `roofline_executor`, `roofline.speculative`, `engine.speculating`.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from nanoserve.engine.types import TICKS_PER_S, Plan, Row, StepResult
from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.pricing import PlanPricer, Pricer
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec

_WORD = (1 << 64) - 1


class SpeculatingRoofline:
    """Implements `engine.types.Executor`: another executor's prices, a drafter's beside them, and tokens gained."""

    def __init__(
        self,
        target: RooflineExecutor,
        acceptance: float | None,
        seed: int = 0,
        draft: "DraftPricer | None" = None,
    ):
        """Holds the parts.

        Args:
          target: prices verification. acceptance: chance that a guess is right when those before it were.
          seed: of the draws. draft: prices a draft model; None where guesses cost the device nothing.

        Raises:
          ConfigError: nobody said how often guesses are right.
        """
        if acceptance is None:
            raise ConfigError(
                "Engine.draft_acceptance is not set: a simulated run makes no tokens, so it must be told how often a "
                "drafted one is right. Measure it in an executed run, or try several"
            )
        self._target, self._acceptance, self._seed, self._draft = target, acceptance, seed, draft

    def submit(self, plan: Plan) -> StepResult:
        """Prices a plan and draws what it gains."""
        decode = plan.rows()[: plan.counts.decode_seqs]
        result = self._target.submit(plan).result()
        drafting, waiting = (0, 0) if self._draft is None else self._draft.ticks(plan.counts, decode)
        duration = result.duration_ticks + drafting
        return dataclasses.replace(
            result,
            duration_ticks=duration,
            first_step_ticks=duration,
            host_ticks=result.host_ticks + waiting,
            gained={row.index: 1 + self._right(row) for row in decode},
        )

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """One: the next step depends on what this one gains."""
        return 1

    def release(self, index: int) -> None:
        """Nothing is held."""

    def __getstate__(self) -> None:
        """For a snapshot: nothing changes in a run."""

    def _right(self, row: Row) -> int:
        """How many guesses of a row are right, from the first on."""
        for guess in range(row.new_tokens - 1):
            if chance(self._seed, row.index, row.start + 1 + guess) >= self._acceptance:
                return guess
        return row.new_tokens - 1


class DraftPricer:
    """Prices the steps of a draft model that runs on the target's chips."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: ClusterSpec,
        precision: Precision,
        calibration: Calibration,
        ticks_per_s: int = TICKS_PER_S,
    ):
        """Prices by the operation model, with the target's constants, in the target's ticks.

        Raises:
          ConfigError: unknown dtype or mesh axis.
        """
        self._pricer: PlanPricer = Pricer(model, cluster, precision, calibration, ticks_per_s=ticks_per_s)
        self._window_tokens = model.sliding_window_tokens

    def ticks(self, counts: StepCounts, decode: Sequence[Row]) -> tuple[int, int]:
        """Returns what a plan's drafting takes, and the part of it in which the device waits for the host.

        Args:
          counts: of the plan. decode: its decode rows; the loop runs for all of them until the last has its guesses.
        """
        plans = [] if not decode else [self._loop(decode)]
        if counts.prefill_tokens:
            plans.append(_chunks_alone(counts))
        pricer = self._pricer
        waiting = pricer.host_ticks(StepCounts()) if decode else 0  # for the guesses; chunks are waited for by nobody
        return waiting + sum(pricer.plan_ticks(plan) - pricer.host_ticks(plan) for plan in plans), waiting

    def _loop(self, decode: Sequence[Row]) -> StepCounts:
        rows, steps = len(decode), max(row.new_tokens for row in decode)
        attended = [row.start + 1 + step for row in decode for step in range(steps)]
        window = self._window_tokens
        return StepCounts(
            steps=steps,
            decode_seqs=rows,
            decode_kv_tokens=sum(attended),
            decode_window_tokens=_within(attended, window),
            sampled=steps * rows,
        )


def chance(seed: int, request: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone, as if drawn evenly.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014 (SplitMix64's mixing).
    """
    word = 0
    for part in (seed, request, position):
        word = (word + part * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _WORD
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
        word ^= word >> 31
    return (word >> 11) / (1 << 53)


def _chunks_alone(counts: StepCounts) -> StepCounts:
    """A plan's prompt chunks without its decode rows; a draft model samples nothing after them."""
    return dataclasses.replace(
        counts,
        decode_seqs=0,
        decode_kv_tokens=0,
        decode_window_tokens=0,
        sampled=0,
        drafted_tokens=0,
        drafted_pairs=0,
        drafted_window_pairs=0,
    )


def _within(attended: Iterable[int], window_tokens: int | None) -> int:
    return sum(attended) if window_tokens is None else sum(min(one, window_tokens) for one in attended)
