"""Ends requests before their limit, as a token that ends a text would: for simulated runs, which make no tokens.

A client states a limit and the answer ends where it ends. A log tells the second number, and
`TraceSource.stated_limit_tokens` supplies the first. Or a real run is simulated, and the twin is told where its
requests stopped. What a plan of several steps computes beyond a stop is thrown away, as it is on a device. Next:
`roofline_executor`.
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

    def submit(self, plan: Plan) -> StepResult:
        """Runs a plan and says who stopped in it."""
        result = self._runner.submit(plan).result()
        rows = [row for row in plan.rows() if row.samples and row.index in self._stops]
        stopped = {row.index: left for row in rows if (left := self._left(row)) <= _gained(row, plan, result)}
        gained = result.gained
        if gained is not None:
            gained = {index: min(tokens, stopped.get(index, tokens)) for index, tokens in gained.items()}
        return dataclasses.replace(result, stopped=stopped, gained=gained)

    def steps_before(self, counts: StepCounts, span_ticks: int) -> int:
        """The runner's answer."""
        return self._runner.steps_before(counts, span_ticks)

    def release(self, index: int) -> None:
        """Tells the runner."""
        self._runner.release(index)

    def _left(self, row: Row) -> int:
        return self._stops[row.index] - row.generated


def _gained(row: Row, plan: Plan, result: StepResult) -> int:
    """Tokens that a row gained in a plan."""
    return plan.horizon if result.gained is None else result.gained.get(row.index, 1)
