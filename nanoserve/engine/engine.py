"""The loop: take what arrived, plan, run, book, log; until nothing is left.

The same loop drives the real and the simulated engine; only the executor and the clock differ. Read `types` first, then
this file, then `scheduler`.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from nanoserve.engine.clock import Clock
from nanoserve.engine.log import RunLog
from nanoserve.engine.scheduler import Scheduler
from nanoserve.engine.types import Executor, Plan, Request, StepResult, to_ticks
from nanoserve.roofline.counts import StepCounts


class Load(Protocol):
    """When requests are sent: open or closed loop (`nanoserve.trace.load`)."""

    def next_ticks(self) -> int | None:
        """When the next request is due; None if none is, or only after another finishes."""
        ...

    def take(self, now_ticks: int) -> list[tuple[int, int]]:
        """All (trace row, scheduled arrival) due by now, in order."""
        ...

    def finished(self, row: int, now_ticks: int) -> None:
        """Told that a request returned."""
        ...


class Engine:
    """Drives a scheduler with an executor over a load, and logs every plan."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        executor: Executor,
        load: Load,
        clock: Clock,
        log: RunLog,
        request_of: Callable[[int, int], Request],
    ):
        """Puts the parts together.

        Args:
          scheduler, executor, load, clock, log: the parts; all fresh.
          request_of: (trace row, arrival ticks) -> the request.
        """
        self.scheduler = scheduler
        self.executor = executor
        self.load = load
        self.clock = clock
        self.log = log
        self._request_of = request_of
        self._interval_ticks = to_ticks(scheduler.config.interval_s) or None
        self._expires = scheduler.config.timeout_s is not None or scheduler.config.batching == "static"
        self._known = 0  # arrivals until then have been taken

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        observe: Callable[[int, int], None] = lambda done, now: None,
    ) -> None:
        """Runs until every request has left, or until asked to stop; then what is still running is aborted.

        Args:
          should_stop: asked before every plan.
          observe: told (requests that left, now_ticks) after every plan, for progress.
        """
        while not should_stop():
            now = self.clock.now()
            self._take_arrivals(now)
            plan = self.scheduler.plan(now, lambda counts, now=now: self._steps_before_next_event(counts, now))
            if plan is None:
                due = self._next_start_ticks()
                if due is None:
                    return
                self.clock.wait_until(due)
                continue
            self._run_plan(plan, now)
            observe(self.log.finished_count(), self.clock.now())
        self._abort_all("the run was stopped")

    def _run_plan(self, plan: Plan, start: int) -> None:
        scheduler = self.scheduler
        occupancy = scheduler.occupancy()
        result = self.executor.submit(plan).result()
        end = self.clock.step_done(result.duration_ticks)
        if result.duration_ticks != end - start:
            result = _with_planning(result, end - start, plan.horizon)
        self.log.planned(plan, result, start, occupancy)
        for index in scheduler.apply(plan, result, start, end):
            self._left(index, end)

    def _take_arrivals(self, now: int) -> None:
        known = now if self._interval_ticks is None else self._known_at(now)
        for row, arrival_ticks in self.load.take(known):
            if not self.scheduler.add(self._request_of(row, arrival_ticks), now):
                self.load.finished(row, now)
        if self._expires:
            for index in self.scheduler.expire(now):
                self._left(index, now)

    def _left(self, index: int, now_ticks: int) -> None:
        self.executor.release(index)
        self.load.finished(index, now_ticks)

    def _steps_before_next_event(self, counts: StepCounts, now: int) -> int:
        due, deadline = self.load.next_ticks(), self.scheduler.next_deadline_ticks()
        if due is not None and self._interval_ticks is not None:
            due += -due % self._interval_ticks
        if due is None or (deadline is not None and deadline < due):
            due = deadline
        if due is None:
            return self.scheduler.config.max_horizon_steps
        return self.executor.steps_before(counts, due - now) if due > now else 1

    def _known_at(self, now: int) -> int:
        """Until when arrivals are known: now, or the last multiple of the interval while something runs."""
        if self._interval_ticks is not None and self.scheduler.running_count:
            now -= now % self._interval_ticks
        self._known = max(self._known, now)
        return self._known

    def _next_start_ticks(self) -> int | None:
        """When an engine with nothing to run is wanted again: at an arrival, a time-out, or when a batch is due."""
        scheduler = self.scheduler
        times = (self.load.next_ticks(), scheduler.next_deadline_ticks(), scheduler.next_batch_ticks())
        return min((time for time in times if time is not None), default=None)

    def _abort_all(self, detail: str) -> None:
        now = self.clock.now()
        for index in list(self.log.unfinished()):
            self.scheduler.abort(index, now, detail)
            self._left(index, now)


def _with_planning(result: StepResult, elapsed: int, horizon: int) -> StepResult:
    """A measured step also took the time it was planned in, which is host time; a priced one took its price."""
    planning = elapsed - result.duration_ticks
    return dataclasses.replace(
        result, duration_ticks=elapsed, first_step_ticks=elapsed // horizon, host_ticks=result.host_ticks + planning
    )
