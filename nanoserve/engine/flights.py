"""Plans under way on several engines at once: which is over next.

`PricedFlights` knows when each will end, because it was priced; `MeasuredFlights` asks the devices. Next: `fleet`.
"""

import heapq
from collections.abc import Iterator
from typing import Protocol

from nanoserve.engine.clock import Clock
from nanoserve.engine.engine import Submitted
from nanoserve.engine.types import StepResult, to_ticks

_POLL_TICKS = to_ticks(50e-6)  # between two looks at the devices

Landed = tuple[int, Submitted, StepResult, int]
"""Replica, its plan, what came back, and when it was over."""


class Flights(Protocol):
    """Plans under way, at most one a replica."""

    def start(self, replica: int, submitted: Submitted) -> None:
        """A replica's plan was submitted."""
        ...

    def landed(self, clock: Clock) -> Iterator[Landed]:
        """Plans that are over by now, each once; the clock is that of the fleet."""
        ...

    def next_ticks(self, now_ticks: int) -> int | None:
        """When to look again; None while nothing is under way."""
        ...

    def end_ticks(self, replica: int) -> int | None:
        """When a replica's plan is over, if that is known."""
        ...

    def rest(self, clock: Clock) -> Iterator[Landed]:
        """Everything under way, as it comes to its end."""
        ...


class PricedFlights:
    """Ends are known when a plan is submitted; plans that end together do so in the order of their replicas."""

    def __init__(self):
        """Starts with none."""
        self._ends: dict[int, int] = {}  # by replica
        self._heap: list[tuple[int, int, Submitted, StepResult]] = []

    def start(self, replica: int, submitted: Submitted) -> None:
        """Asks for the price."""
        result = submitted.pending.result()
        end = self._ends[replica] = submitted.start_ticks + result.duration_ticks
        heapq.heappush(self._heap, (end, replica, submitted, result))

    def landed(self, clock: Clock) -> Iterator[Landed]:
        """In the order of their ends."""
        now = clock.now()
        while self._heap and self._heap[0][0] <= now:
            end, replica, submitted, result = heapq.heappop(self._heap)
            del self._ends[replica]
            yield replica, submitted, result, end

    def next_ticks(self, now_ticks: int) -> int | None:
        """The first end."""
        return self._heap[0][0] if self._heap else None

    def end_ticks(self, replica: int) -> int | None:
        """Known for every plan under way."""
        return self._ends.get(replica)

    def rest(self, clock: Clock) -> Iterator[Landed]:
        """In the order of their ends."""
        while self._heap:
            clock.wait_until(self._heap[0][0])
            yield from self.landed(clock)


class MeasuredFlights:
    """Ends are noticed by looking; the host looks at one plan after the other and never waits for a single one."""

    def __init__(self):
        """Starts with none."""
        self._flying: dict[int, Submitted] = {}

    def start(self, replica: int, submitted: Submitted) -> None:
        """The device works while others are submitted."""
        self._flying[replica] = submitted

    def landed(self, clock: Clock) -> Iterator[Landed]:
        """Whatever is ready, in the order of the replicas' starts."""
        for replica in [number for number, submitted in self._flying.items() if submitted.pending.ready()]:
            yield self._land(replica, clock)

    def next_ticks(self, now_ticks: int) -> int | None:
        """A moment from now."""
        return now_ticks + _POLL_TICKS if self._flying else None

    def end_ticks(self, replica: int) -> int | None:
        """Nobody knows."""
        return None

    def rest(self, clock: Clock) -> Iterator[Landed]:
        """Waits for one after the other."""
        for replica in list(self._flying):
            yield self._land(replica, clock)

    def _land(self, replica: int, clock: Clock) -> Landed:
        submitted = self._flying.pop(replica)
        result = submitted.pending.result()
        return replica, submitted, result, clock.now()
