"""Simulates a run that was executed: its programs' measured times, and its requests' real ends.

A real run may stop a request early, at a token that ends its text, which no simulation can foresee. To be laid beside
it, a simulation is told where: then the two differ only in what steps cost. Next: `nanoserve.roofline.program_pricing`.
"""

import dataclasses
from collections.abc import Mapping

from nanoserve.engine.types import Plan, StepResult
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.program_pricing import ProgramPricer


class ProgramExecutor:
    """Implements `engine.types.Executor` with a `ProgramPricer`."""

    def __init__(self, pricer: ProgramPricer, stops: Mapping[int, int] | None = None):
        """Holds both.

        Args:
          pricer: of the programs that the real executor has.
          stops: request index -> output tokens after which it stops, for those that stop before their limit.
        """
        self._pricer, self._stops = pricer, stops or {}

    def submit(self, plan: Plan) -> "_Known":
        """Prices a plan, and ends the requests that end in it."""
        counts = plan.counts
        duration = self._pricer.plan_ticks(counts)
        first = self._pricer.first_step_ticks(counts, counts.decode_seqs) if plan.horizon > 1 else duration
        return _Known(StepResult(duration, first, stopped=self._stopped(plan) if self._stops else {}))

    def steps_before(self, counts: StepCounts, span_ticks: int) -> int:
        """How many decode steps start within `span_ticks`."""
        return self._pricer.steps_before(counts, span_ticks, counts.decode_seqs)

    def release(self, index: int) -> None:
        """Nothing is held."""

    def _stopped(self, plan: Plan) -> dict[int, int]:
        stopped = {}
        for row in plan.rows():
            left = self._stops.get(row.index, plan.horizon + row.generated + 1) - row.generated
            if row.samples and left <= plan.horizon:
                stopped[row.index] = left
        return stopped


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    """A pending result that is already known."""

    value: StepResult

    def result(self) -> StepResult:
        """The priced step."""
        return self.value
