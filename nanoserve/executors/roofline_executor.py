"""Plans that are priced instead of run: the simulator is the real engine with this executor and a virtual clock.

Invariant: exact. A plan of k steps takes what its steps take one by one, in ticks, so a run does not depend on how
steps are gathered into plans. Next: `nanoserve.roofline.pricing`.
"""

import dataclasses

from nanoserve.engine.types import TICKS_PER_S, Plan, StepResult
from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.pricing import PlanPricer, Pricer
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec


@dataclasses.dataclass(slots=True)
class _Priced:
    """A pending result that is already known."""

    value: StepResult

    def result(self) -> StepResult:
        """The priced step."""
        return self.value


class RooflineExecutor:
    """Implements `engine.types.Executor` by pricing. Makes no tokens, so nothing stops before its length."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: ClusterSpec,
        precision: Precision,
        calibration: Calibration,
        pricer: PlanPricer | None = None,
    ):
        """Takes the pricer, or makes the one of the operation model.

        Args:
          model, cluster, precision, calibration: what is priced, and with which constants.
          pricer: another way to price plans, in ticks of `TICKS_PER_S`.

        Raises:
          ConfigError: unknown dtype or mesh axis.
        """
        self.pricer = pricer or Pricer(model, cluster, precision, calibration, ticks_per_s=TICKS_PER_S)
        self._window_tokens = model.sliding_window_tokens

    def submit(self, plan: Plan) -> _Priced:
        """Prices a plan."""
        counts, pricer = plan.counts, self.pricer
        duration = pricer.plan_ticks(counts)
        first = duration if plan.horizon == 1 else pricer.first_step_ticks(counts, self._growth(plan))
        result = StepResult(duration, first, host_ticks=pricer.host_ticks(counts))
        return _Priced(self._with_padding(plan, result) if plan.padding_rows else result)

    def steps_before(self, counts: StepCounts, span_ticks: int) -> int:
        """How many decode steps start within `span_ticks`: exact without a sliding window.

        With one, it is not known here which rows still grow; all are taken to, so the answer may be a few steps short.
        """
        return self.pricer.steps_before(counts, span_ticks, growth=counts.decode_seqs)

    def release(self, index: int) -> None:
        """Nothing is held."""

    def _with_padding(self, plan: Plan, result: StepResult) -> StepResult:
        """A step whose padding rows go through the layers and the head like others, but attend to nothing."""
        counts, rows = plan.counts, plan.padding_rows
        padded = dataclasses.replace(
            counts, decode_seqs=counts.decode_seqs + rows, sampled=counts.sampled + counts.steps * rows
        )
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
