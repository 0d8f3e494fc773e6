"""Several engines, one load: the fleet routes every request at its arrival and lets the engines run side by side.

Each replica is an `Engine` with a scheduler, pages and executor of its own; it does not know of the others. The fleet
goes from event to event: plans that are over are booked, requests that are due are routed, and replicas that are free
and were touched by either start their next plan. All that is due at one moment happens in that order, replicas by
their numbers, so a run in virtual time repeats itself.

Invariants: a request is on exactly one replica; a replica has at most one plan under way; with one replica the records
are those of `Engine.run`, byte for byte. In virtual time a fleet is exact: no replica plans beyond the next moment at
which a request could reach it, so results do not depend on how steps are gathered into plans. On a wall clock every
free replica is given its plan before any result is awaited, so their devices work at the same time; a request that is
sent because another came back (closed loop) may there wait for the end of its replica's horizon.

Next: `routing` (who gets a request), `flights` (whose plan is over), `engine` (what a replica does).
"""

import functools
import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from nanoserve.engine.clock import Clock
from nanoserve.engine.engine import Engine, Load, Submitted
from nanoserve.engine.flights import Flights, Landed
from nanoserve.engine.routing import Router
from nanoserve.engine.types import Request


class FleetLoad(Load, Protocol):
    """The load of all replicas together."""

    def soonest_after(self, ticks: int) -> int | None:
        """The soonest that a request could be sent because another returns at `ticks`; None if none ever is."""
        ...


class Inbox:
    """The load of one replica: what was routed to it, and until when nothing else can be."""

    def __init__(self, next_ticks: Callable[[], int | None], returned: Callable[[int, int], None]):
        """Starts empty.

        Args:
          next_ticks: the soonest that something could still be routed here; None for never, as things are.
          returned: told (row, ticks) of every request that left.
        """
        self._next_ticks, self._returned = next_ticks, returned
        self._routed: list[tuple[int, int, int]] = []  # a heap of (due, row, scheduled arrival)

    def put(self, row: int, arrival_ticks: int, due_ticks: int) -> None:
        """Adds a request that was scheduled for `arrival_ticks` and is here at `due_ticks`."""
        heapq.heappush(self._routed, (due_ticks, row, arrival_ticks))

    def next_ticks(self) -> int | None:
        """When the next request is here, or could be."""
        return soonest(self.first_ticks(), self._next_ticks())

    def first_ticks(self) -> int | None:
        """When the next of those is here that are on their way."""
        return self._routed[0][0] if self._routed else None

    def take(self, now_ticks: float) -> list[tuple[int, int]]:
        """All (trace row, scheduled arrival) that are here by now, in order."""
        here = []
        while self._routed and self._routed[0][0] <= now_ticks:
            _, row, arrival_ticks = heapq.heappop(self._routed)
            here.append((row, arrival_ticks))
        return here

    def finished(self, row: int, now_ticks: int) -> None:
        """A request left this replica."""
        self._returned(row, now_ticks)


class Fleet:
    """Drives several engines over one load."""

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        load: FleetLoad,
        clock: Clock,
        flights: Flights,
        router: Router,
        request_of: Callable[[int, int], Request],
    ):
        """Takes over the engines: each gets an inbox as its load, and its own clock is not used.

        Args:
          engines: the replicas, all fresh. load: of all together. clock: of all together.
          flights: `PricedFlights` in virtual time, `MeasuredFlights` on a wall clock.
          router: who serves a request; numbers the first of the engines, or all of them, from 0.
          request_of: (trace row, arrival ticks) -> the request, for the router.
        """
        self.engines, self.load, self.clock, self.flights = engines, load, clock, flights
        self.router = router
        self.replica_of: dict[int, int] = {}  # by request
        self._request_of = request_of
        self._here: dict[int, Request] = {}  # requests that were routed and have not left
        self._busy: set[int] = set()  # replicas with a plan under way
        self._free: set[int] = set()  # others that may start one now
        self._wakes: list[tuple[int, int]] = []  # a heap of (ticks, replica): one that is idle has something to do then
        self._inboxes = [
            Inbox(functools.partial(self._bound, number), functools.partial(self._returned, number))
            for number in range(len(engines))
        ]
        for engine, inbox in zip(engines, self._inboxes, strict=True):
            engine.load = inbox

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        observe: Callable[[int, int], object] = lambda done, now: None,
    ) -> None:
        """Runs until every request has left, or until asked to stop; then what is still running is aborted.

        Args:
          should_stop: asked at every event.
          observe: told (requests that left, now_ticks) after every event, for progress.
        """
        self.clock.start()
        due: int | None = self.clock.now()
        while due is not None:
            self.clock.wait_until(due)
            now = self.clock.now()
            self._book(self.flights.landed(self.clock))
            if should_stop():
                self._abort_all("the run was stopped")
                return
            self._route_arrivals(now)
            self._start_free(now)
            observe(self.finished_count, now)
            due = self._next_ticks(now)

    @property
    def finished_count(self) -> int:
        """Requests that left, for whatever reason."""
        return sum(engine.log.finished_count for engine in self.engines)

    def request_columns(self, rows: Sequence[int]) -> dict[str, list]:
        """What a fleet adds to the records of these requests: `records.FLEET_REQUEST_COLUMNS`, as far as it knows."""
        return {"replica": [self.replica_of[row] for row in rows]}

    # ---- events ----

    def _book(self, landed: Iterable[Landed]) -> None:
        for number, submitted, result, end in landed:
            self._busy.remove(number)
            self._free.add(number)
            self.engines[number].book(submitted, result, end)
            self._booked(number, submitted, end)

    def _route_arrivals(self, now: int) -> None:
        for row, arrival_ticks in self.load.take(now):
            request = self._request_of(row, arrival_ticks)
            number = self.router.send(request, now)
            self._here[row] = request
            self.replica_of[row] = number
            self._inboxes[number].put(row, arrival_ticks, arrival_ticks)
            self._wake(number)

    def _start_free(self, now: int) -> None:
        while self._wakes and self._wakes[0][0] <= now:
            self._wake(heapq.heappop(self._wakes)[1])
        while self._free:
            number = min(self._free)
            self._free.remove(number)
            engine = self.engines[number]
            submitted = engine.start(now)
            if submitted is not None:
                self._busy.add(number)
                self.flights.start(number, submitted)
                self._started(submitted)
            else:
                self._rest(number, now)

    def _rest(self, number: int, now: int) -> None:
        """A replica has nothing to run: it is wanted again when something is due there, which may be at once."""
        engine, first = self.engines[number], self._inboxes[number].first_ticks()
        seen = None if first is None else engine.seen_ticks(first)
        if seen is not None and seen <= now:
            self._free.add(number)
        for wake in (seen, engine.wake_ticks()):
            if wake is not None and wake > now:
                heapq.heappush(self._wakes, (wake, number))

    def _next_ticks(self, now: int) -> int | None:
        """When the next request is due, or something happens among the replicas."""
        return soonest(self.load.next_ticks(), self._next_event(now))

    def _next_event(self, now: int) -> int | None:
        """When the next plan is over, or an idle replica has something to do."""
        return soonest(self.flights.next_ticks(now), self._wakes[0][0] if self._wakes else None)

    def _abort_all(self, detail: str) -> None:
        self._book(self.flights.rest(self.clock))
        now = self.clock.now()
        for engine, inbox in zip(self.engines, self._inboxes, strict=True):
            for row, arrival_ticks in inbox.take(math.inf):
                engine.add(row, arrival_ticks, now)
            engine.abort_all(now, detail)

    # ---- what other fleets add to ----

    def _started(self, submitted: Submitted) -> None:
        """A replica's plan was submitted."""

    def _booked(self, number: int, submitted: Submitted, end: int) -> None:
        """A replica's plan was over at `end`."""

    def _router_of(self, number: int) -> Router:
        """Which router sends requests to a replica."""
        return self.router

    def _bound(self, number: int) -> int | None:
        """The soonest that a request could be routed to a replica: the next arrival, or one that others bring about."""
        due = self.load.next_ticks()
        if self.load.soonest_after(0) is None:
            return due
        returns = [self._soonest_return(other) for other in range(len(self.engines)) if other != number]
        return soonest(due, *(self.load.soonest_after(ticks) for ticks in returns if ticks is not None))

    def _returned(self, number: int, row: int, now_ticks: int) -> None:
        """A request left a replica for good."""
        self._router_of(number).left(number, self._here.pop(row))
        self.load.finished(row, now_ticks)

    # ---- small parts ----

    def _wake(self, number: int) -> None:
        if number not in self._busy:
            self._free.add(number)

    def _soonest_return(self, number: int) -> int | None:
        """The soonest that a request could leave a replica, as far as that is known; None if none can."""
        if number in self._busy:
            return self.flights.end_ticks(number)
        if number in self._free:
            return self.clock.now()
        return soonest(self.engines[number].wake_ticks(), self._inboxes[number].first_ticks())


def soonest(*times: int | None) -> int | None:
    """The first of several moments, None being never."""
    first = None
    for time in times:
        if time is not None and (first is None or time < first):
            first = time
    return first
