"""When requests are sent: at the times in the trace, or as soon as a client is free.

`OpenLoop` and `ClosedLoop` have one small face, the one the engine drives (`nanoserve.engine.engine.Load`). Each row of
the trace is handed out once, in trace order. Time is an integer number of ticks; what a tick is stays with the caller,
who passes `to_ticks`. Calls come with times that never go back. Next: `source`, which makes both from a config.
"""

import bisect
import heapq
from collections.abc import Callable

from nanoserve.specs.errors import ConfigError
from nanoserve.trace.types import Trace


class OpenLoop:
    """Sends every request at its own time, however the server fares."""

    def __init__(self, trace: Trace, to_ticks: Callable[[float], int], *, time_scale: float = 1.0):
        """Computes every due time once.

        Args:
          trace: what to send.
          to_ticks: seconds to ticks; must not decrease.
          time_scale: multiplies the arrival times; 0.5 sends twice as fast.

        Raises:
          ConfigError: if `time_scale` is not positive.
        """
        _check_positive("time_scale", time_scale)
        self._due_ticks = [to_ticks(seconds) for seconds in (trace.arrival_s * time_scale).tolist()]
        self._count = len(self._due_ticks)
        self._next = 0

    @property
    def remaining(self) -> int:
        """Requests not yet taken."""
        return self._count - self._next

    @property
    def exhausted(self) -> bool:
        """Whether every request has been taken."""
        return self._next == self._count

    def next_ticks(self) -> int | None:
        """When the next request is due; None after the last."""
        return self._due_ticks[self._next] if self._next < self._count else None

    def take(self, now_ticks: int) -> list[tuple[int, int]]:
        """All (trace row, scheduled arrival in ticks) due by now, in order."""
        first = self._next
        if first == self._count or self._due_ticks[first] > now_ticks:
            return []
        self._next = bisect.bisect_right(self._due_ticks, now_ticks, first)
        return list(zip(range(first, self._next), self._due_ticks[first : self._next], strict=True))

    def finished(self, row: int, now_ticks: int) -> None:
        """Nothing to do: the schedule does not wait for anyone."""

    def __getstate__(self) -> dict[str, int]:
        """For a snapshot: how far it is; the times are the trace's."""
        return {"_next": self._next}

    def soonest_after(self, ticks: int) -> int | None:
        """None: no request is sent because another returns."""


class ClosedLoop:
    """A fixed number of clients, each with at most one request under way.

    Every client sends at time 0, and again `think_time_s` after its request returned. Clients take rows from one shared
    queue in trace order, so the trace gives the lengths and the order; its arrival times are not used.
    """

    def __init__(
        self,
        trace: Trace,
        to_ticks: Callable[[float], int],
        *,
        clients: int,
        think_time_s: float = 0.0,
        time_scale: float = 1.0,
    ):
        """Puts every client at the start.

        Args:
          trace: what to send.
          to_ticks: seconds to ticks; must not decrease.
          clients: requests under way at once, at most.
          think_time_s: from the end of a client's request to its next.
          time_scale: multiplies the think time.

        Raises:
          ConfigError: if a number is out of range.
        """
        _check_positive("clients", clients)
        _check_positive("time_scale", time_scale)
        if not 0 <= think_time_s < float("inf"):
            raise ConfigError(f"ClosedLoop think_time_s = {think_time_s}: must be at least 0 and finite")
        self._think_ticks = to_ticks(think_time_s * time_scale)
        self._free_ticks = [0] * min(clients, len(trace))  # a heap: when each idle client sends
        self._count = len(trace)
        self._next = 0

    @property
    def remaining(self) -> int:
        """Requests not yet taken."""
        return self._count - self._next

    @property
    def exhausted(self) -> bool:
        """Whether every request has been taken."""
        return self._next == self._count

    def next_ticks(self) -> int | None:
        """When the next client sends; None if all wait for an answer or nothing is left to send."""
        return self._free_ticks[0] if self._free_ticks and self._next < self._count else None

    def take(self, now_ticks: int) -> list[tuple[int, int]]:
        """All (trace row, scheduled arrival in ticks) due by now, in order."""
        due = []
        while self._free_ticks and self._free_ticks[0] <= now_ticks and self._next < self._count:
            due.append((self._next, heapq.heappop(self._free_ticks)))
            self._next += 1
        return due

    def finished(self, row: int, now_ticks: int) -> None:
        """The client of this request is free and sends its next after the think time."""
        heapq.heappush(self._free_ticks, now_ticks + self._think_ticks)

    def soonest_after(self, ticks: int) -> int | None:
        """The soonest that a request could be sent because another returns at `ticks`; None if none is left."""
        return None if self.exhausted else ticks + self._think_ticks


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ConfigError(f"load {name} = {value}: must be positive and finite")
