"""The loop: take what arrived, plan, run, book, log; until nothing is left.

The same loop drives the real and the simulated engine; only the executor and the clock differ. Read `types` first, then
this file, then `scheduler`.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from nanoserve.engine.clock import Clock
from nanoserve.engine.log import Occupancy, RunLog
from nanoserve.engine.scheduler import Scheduler
from nanoserve.engine.types import Arrived, Executor, Pending, Plan, Request, StepResult, to_ticks
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


@dataclasses.dataclass(slots=True)
class Submitted:
    """A plan that an executor has, when it got it, and how full the engine was then."""

    plan: Plan
    pending: Pending
    start_ticks: int
    occupancy: Occupancy


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
        self.arrived: dict[int, Arrived] = {}  # what other engines made of requests that will be taken
        self._request_of = request_of
        self._interval_ticks = to_ticks(scheduler.config.interval_s) or None
        self._expires = scheduler.config.timeout_s is not None or scheduler.config.batching == "static"
        self._known = 0  # arrivals until then have been taken

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        observe: Callable[[int, int], object] = lambda done, now: None,
    ) -> None:
        """Runs until every request has left, or until asked to stop; then what is still running is aborted.

        Args:
          should_stop: asked before every plan.
          observe: told (requests that left, now_ticks) after every plan, for progress.
        """
        self.clock.start()
        while not should_stop():
            now = self.clock.now()
            plan = self._plan(now)
            if plan is None:
                due = self._next_start_ticks()
                if due is None:
                    return
                self.clock.wait_until(due)
                continue
            occupancy = self.scheduler.occupancy()
            result = self.executor.submit(plan).result()
            end = self.clock.step_done(result.duration_ticks)
            self._book(plan, occupancy, result, now, end)
            observe(self.log.finished_count, end)
        self.abort_all(self.clock.now(), "the run was stopped")

    def start(self, now: int) -> Submitted | None:
        """Takes what arrived by now, plans and submits; None when there is nothing to run. `book` comes next."""
        plan = self._plan(now)
        if plan is None:
            return None
        occupancy = self.scheduler.occupancy()
        return Submitted(plan, self.executor.submit(plan), now, occupancy)

    def add(self, row: int, arrival_ticks: int, now: int) -> None:
        """Takes a request, or refuses it."""
        if not self.scheduler.add(self._request_of(row, arrival_ticks), now, self.arrived.pop(row, None)):
            self.load.finished(row, now)

    def book(self, submitted: Submitted, result: StepResult, end: int) -> None:
        """Books what a submitted plan did, and logs it; `start` may come next.

        Args:
          submitted: what `start` returned. result: of its pending. end: when the plan was over.
        """
        self._book(submitted.plan, submitted.occupancy, result, submitted.start_ticks, end)

    def seen_ticks(self, due: int) -> int:
        """When a request that is there at `due` is taken: at once, or at the next interval while something runs."""
        if self._interval_ticks is None or not self.scheduler.running_count:
            return due
        return due + -due % self._interval_ticks

    def wake_ticks(self) -> int | None:
        """When an engine with nothing to run has something to do without an arrival: a time-out, or a batch is due."""
        times = (self.scheduler.next_deadline_ticks(), self.scheduler.next_batch_ticks())
        return min((time for time in times if time is not None), default=None)

    def abort(self, index: int, now: int, detail: str) -> None:
        """Ends a request that is in the engine, wherever it is; between `book` and `start`."""
        self.scheduler.abort(index, now, detail)
        self._left(index, now)

    def abort_all(self, now: int, detail: str) -> None:
        """Ends every request that is in the engine."""
        for index in sorted(self.scheduler.sequences):
            self.abort(index, now, detail)

    def _plan(self, now: int) -> Plan | None:
        """Takes what arrived by now, and plans; again, where all who would have run had no memory."""
        scheduler = self.scheduler
        while True:
            self._take_arrivals(now)
            plan = scheduler.plan(now, self._steps_before_next_event)
            if not scheduler.pressure.failed:
                return plan
            for index in scheduler.take_failed(now):
                self._left(index, now)
            if plan is not None:
                return plan

    def _book(self, plan: Plan, occupancy: Occupancy, result: StepResult, start: int, end: int) -> None:
        """Logs and applies a plan that ran from `start` to `end`."""
        if result.duration_ticks != end - start:
            result = _with_planning(result, end - start, plan.horizon)
        self.log.planned(plan, result, start, occupancy)
        for index in self.scheduler.apply(plan, result, start, end):
            self._left(index, end)

    def _take_arrivals(self, now: int) -> None:
        known = now if self._interval_ticks is None else self._known_at(now)
        for row, arrival_ticks in self.load.take(known):
            self.add(row, arrival_ticks, now)
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
            return self.executor.steps_before(counts, None)
        return self.executor.steps_before(counts, due - now) if due > now else 1

    def _known_at(self, now: int) -> int:
        """Until when arrivals are known: now, or the last multiple of the interval while something runs."""
        if self._interval_ticks is not None and self.scheduler.running_count:
            now -= now % self._interval_ticks
        self._known = max(self._known, now)
        return self._known

    def _next_start_ticks(self) -> int | None:
        """When an engine with nothing to run is wanted again: at an arrival, or by itself."""
        times = (self.load.next_ticks(), self.wake_ticks())
        return min((time for time in times if time is not None), default=None)


def _with_planning(result: StepResult, elapsed: int, horizon: int) -> StepResult:
    """A measured step also took the time it was planned in, which is host time; a priced one took its price."""
    planning = elapsed - result.duration_ticks
    return dataclasses.replace(
        result, duration_ticks=elapsed, first_step_ticks=elapsed // horizon, host_ticks=result.host_ticks + planning
    )
