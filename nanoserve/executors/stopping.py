"""Ends requests before their limit, as a token that ends a text would: for simulated runs, which make no tokens.

A client states a limit and the answer ends where it ends. A log tells the second number, and
`TraceSource.stated_limit_tokens` supplies the first. Or a real run is simulated, and the twin is told where its
requests stopped. What a plan of several steps computes beyond a stop is thrown away, as it is on a device that runs
such plans; a service that looks at every token has plans that end with the first answer in them (`ForeseeingExecutor`).
Next: `roofline_executor`.
"""

import dataclasses
from collections.abc import Mapping

from nanoserve.engine.types import Executor, Plan, Row, StepResult
from nanoserve.roofline.counts import StepCounts


class StoppingExecutor:
    """Another executor, whose requests stop after so many tokens."""

    def __init__(self, runner: Executor, stops: Mapping[int, int]):
        """Takes who runs the plans, and request index -> output tokens of those that stop before their limit."""
        self._runner, self._stops = runner, stops
        self._left: dict[int, int] = {}  # request -> tokens to the end of its answer, of those that have begun it

    def submit(self, plan: Plan) -> StepResult:
        """Runs a plan and says who stopped in it."""
        result = self._runner.submit(plan).result()
        stopped = {}
        for row in plan.rows():
            last = self._stops.get(row.index)
            if last is None or not row.samples:
                continue
            left, gained = last - row.generated, _gained(row, plan, result)
            if left <= gained:
                stopped[row.index] = left
                self._left.pop(row.index, None)
            else:
                self._left[row.index] = left - gained
        if not stopped:
            return result
        gained = result.gained
        if gained is not None:
            gained = {index: min(tokens, stopped.get(index, tokens)) for index, tokens in gained.items()}
        return dataclasses.replace(result, stopped=stopped, gained=gained)

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """The runner's answer."""
        return self._runner.steps_before(counts, span_ticks)

    def release(self, index: int) -> None:
        """Tells the runner."""
        self._left.pop(index, None)
        self._runner.release(index)


class ForeseeingExecutor(StoppingExecutor):
    """One that lets no plan of several steps go on beyond the end of an answer, which is an event like an arrival.

    So nothing is computed, and no page held, for an answer that has ended: the records are those of
    `max_horizon_steps = 1`, in fewer plans. Each engine needs its own.
    """

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """The runner's answer, or the steps until the next answer ends; who waits to come back counts, too."""
        return min((super().steps_before(counts, span_ticks), *self._left.values()))


def _gained(row: Row, plan: Plan, result: StepResult) -> int:
    """Tokens that a row gained in a plan."""
    return plan.horizon if result.gained is None else result.gained.get(row.index, 1)
