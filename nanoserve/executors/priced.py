"""JAX tokens on the roofline's clock: the real executor runs every plan, and the priced one says how long it took.

It is how the two are held against each other: with the same step times both must be given the same plans.
"""

import dataclasses

from nanoserve.engine.types import Executor, Pending, Plan, StepResult
from nanoserve.roofline.counts import StepCounts


class PricedExecutor:
    """Runs on `runner`, takes time from `pricer`."""

    def __init__(self, runner: Executor, pricer: Executor):
        """Joins two executors; both see every plan."""
        self.runner, self.pricer = runner, pricer

    def submit(self, plan: Plan) -> "_Both":
        """Submits to both."""
        return _Both(self.runner.submit(plan), self.pricer.submit(plan))

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """The pricer's answer: its clock decides when things happen."""
        return self.pricer.steps_before(counts, span_ticks)

    def release(self, index: int) -> None:
        """Tells both."""
        self.runner.release(index)
        self.pricer.release(index)


@dataclasses.dataclass(frozen=True)
class _Both:
    run: Pending
    price: Pending

    def result(self) -> StepResult:
        """What ran, with the priced times."""
        run, price = self.run.result(), self.price.result()
        return dataclasses.replace(
            run,
            duration_ticks=price.duration_ticks,
            first_step_ticks=price.first_step_ticks,
            host_ticks=price.host_ticks,
        )

    def ready(self) -> bool:
        """Whether it has run."""
        return self.run.ready()
