"""Prefill in one pool, decoding in another: a fleet whose requests move once, after their first token.

A request is routed to a prefill replica, which computes its prompt and samples its first token. Its KV then goes over
the link of that replica, one request after the other, to a decode replica that is chosen when the prompt is done. From
there it is a request like any other: the decode replica's own scheduler admits it when a slot and pages are free. Until
then its pages in the prefill pool stay taken, so a decode pool that is full holds up the prefill pool behind it. A
sequence that is preempted by recomputing is recomputed where it decodes.

Invariants: those of `fleet`; a request whose KV is on the way or waits is held in exactly one prefill replica, and it
is let go there in the moment in which the decode replica's plan takes it.

Next: `fleet`; `nanoserve.roofline.rates`, which says how many replicas of each kind balance.

Source: Zhong et al., "DistServe" (OSDI 2024), section 4.3: decoding pulls KV, and the prefill instances' memory is the
queue.
"""

import dataclasses
import heapq
from collections.abc import Callable, Iterator, Sequence

from nanoserve.engine.clock import Clock
from nanoserve.engine.engine import Engine, Submitted
from nanoserve.engine.fleet import Fleet, FleetLoad, soonest
from nanoserve.engine.flights import Flights
from nanoserve.engine.routing import Router
from nanoserve.engine.sequence import Sequence as Waiting
from nanoserve.engine.sequence import pages_for
from nanoserve.engine.types import Arrived, MoveKind, Request, to_seconds

Send = Callable[[int, int, int, Sequence[int]], None]
"""(prefill replica, decode replica, request, pages in the first)."""


def nothing_to_send(source: int, target: int, index: int, pages: Sequence[int]) -> None:
    """Of simulated pages."""


@dataclasses.dataclass(frozen=True)
class Link:
    """How KV leaves a prefill replica: one request after the other.

    Attributes:
      ticks_per_token: of KV; 0 where the move itself is measured.
      layers: of the model, where each layer's KV leaves as soon as it is computed; None where it leaves when the prompt
        is done. Chunks before the last then leave with the last: what overlaps is a lower limit.
    """

    ticks_per_token: int
    layers: int | None = None

    def arrival_ticks(self, free_ticks: int, start_ticks: int, end_ticks: int, tokens: int) -> int:
        """When a request's KV is there.

        Args:
          free_ticks: when the link has sent what came before. start_ticks, end_ticks: of the step that finished the
            prompt. tokens: of KV.
        """
        ticks = tokens * self.ticks_per_token
        if self.layers is None:
            return max(free_ticks, end_ticks) + ticks
        return max(max(free_ticks, start_ticks) + ticks, end_ticks + ticks // self.layers)


@dataclasses.dataclass(frozen=True, slots=True)
class HandOver:
    """A request's way from one pool to the other: from when to when, and to which replica."""

    begin_ticks: int
    end_ticks: int
    replica: int


class DisaggregatedFleet(Fleet):
    """Prefill replicas, numbered first, and decode replicas."""

    def __init__(
        self,
        prefill: Sequence[Engine],
        decode: Sequence[Engine],
        *,
        load: FleetLoad,
        clock: Clock,
        flights: Flights,
        router: Router,
        decode_router: Router,
        link: Link,
        send: Send = nothing_to_send,
        request_of: Callable[[int, int], Request],
    ):
        """Takes over the engines; see `Fleet`.

        Args:
          prefill: engines whose schedulers hand over. decode: those that receive. load, clock, flights: as in `Fleet`.
          router, decode_router: of the two pools; the second numbers its replicas after the prefill ones.
          link: of every prefill replica. send: starts the real move of a request's pages, where they are real.
          request_of: (trace row, arrival ticks) -> the request, for the routers.
        """
        super().__init__(
            [*prefill, *decode], load=load, clock=clock, flights=flights, router=router, request_of=request_of
        )
        self.decode_router, self.link, self._send = decode_router, link, send
        self.hand_overs: dict[int, HandOver] = {}  # by request
        self._prefill_count = len(prefill)
        self._link_free = [0] * len(prefill)
        self._held: dict[int, int] = {}  # request -> prefill replica that still has its KV

    def request_columns(self, rows: Sequence[int]) -> dict[str, list]:
        """Where and when the requests moved, besides; None for those that had all their tokens before."""
        moved = [self.hand_overs.get(row) for row in rows]
        return super().request_columns(rows) | {
            "decode_replica": [None if way is None else way.replica for way in moved],
            "handed_over_s": [None if way is None else to_seconds(way.begin_ticks) for way in moved],
            "arrived_s": [None if way is None else to_seconds(way.end_ticks) for way in moved],
        }

    # ---- what a fleet lets others add ----

    def _booked(self, number: int, submitted: Submitted, end: int) -> None:
        if number >= self._prefill_count:
            return
        for index, sequence in self.engines[number].scheduler.handed.items():
            if index not in self._held:
                self._hand_over(number, sequence, submitted, end)

    def _hand_over(self, number: int, sequence: Waiting, submitted: Submitted, end: int) -> None:
        index, arrived = sequence.index, Arrived(sequence.kv_tokens, sequence.generated)
        request = self._here[index]
        self.router.left(number, request)
        target = self.decode_router.send(request, end)
        due = self.link.arrival_ticks(self._link_free[number], submitted.start_ticks, end, arrived.kv_tokens)
        self._link_free[number] = due
        size = self.engines[number].scheduler.config.page_tokens
        self._send(number, target, index, sequence.pages[: pages_for(sequence.kv_tokens, size)])
        self._held[index] = number
        self.hand_overs[index] = HandOver(end, due, target)
        self.engines[target].arrived[index] = arrived
        self._inboxes[target].put(index, request.arrival_ticks, due)
        heapq.heappush(self._wakes, (due, target))

    def _started(self, submitted: Submitted) -> None:
        for move in submitted.plan.moves:
            if move.kind is MoveKind.RECEIVE:
                self._let_go(move.index)

    def _returned(self, number: int, row: int, now_ticks: int) -> None:
        if row in self._held:  # it left before it was received
            self._let_go(row)
        super()._returned(number, row, now_ticks)

    def _let_go(self, index: int) -> None:
        source = self._held.pop(index)
        self.engines[source].scheduler.fetched(index)
        self._wake(source)

    def _router_of(self, number: int) -> Router:
        return self.router if number < self._prefill_count else self.decode_router

    def _bound(self, number: int) -> int | None:
        """For a decode replica, the soonest that a prompt could be done besides."""
        bound = super()._bound(number)
        return bound if number < self._prefill_count else soonest(bound, *self._prompts_done())

    def _prompts_done(self) -> Iterator[int | None]:
        """The soonest that each prefill replica could be done with a prompt, as far as that is known."""
        now = self.clock.now()
        for replica in range(self._prefill_count):
            if replica in self._busy:
                end = self.flights.end_ticks(replica)
                yield now if end is None else end
            elif replica in self._free:
                yield now
            elif self.engines[replica].scheduler.sequences:  # it waits for a time, or for pages that others let go
                yield now if self._free else self._next_event(now)
