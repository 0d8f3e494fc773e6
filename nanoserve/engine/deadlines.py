"""When requests time out: a heap of them, the first on top; whoever has left is dropped in passing.

Requests come in order of arrival, and adding one then costs O(1); those that come from another engine do not.
"""

import heapq
from collections.abc import Iterator, Mapping

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.sequence import Sequence
from nanoserve.engine.types import to_ticks


class Deadlines:
    """Time-outs of the requests in an engine. Costs nothing where nobody times out."""

    def __init__(self, config: EngineConfig, sequences: Mapping[int, Sequence]):
        """Starts without any. `sequences` are all that are in the engine, by request."""
        self._timeout_ticks = None if config.timeout_s is None else to_ticks(config.timeout_s)
        self._sequences = sequences
        self._line: list[tuple[int, int, Sequence]] = []  # (ticks, request, ...)

    def add(self, sequence: Sequence) -> None:
        """A request came."""
        if self._timeout_ticks is not None:
            due = sequence.request.arrival_ticks + self._timeout_ticks
            heapq.heappush(self._line, (due, sequence.index, sequence))

    def passed(self, now_ticks: int) -> Iterator[Sequence]:
        """Those who are still here and whose time is up; each once."""
        while self._line and self._line[0][0] <= now_ticks:
            _, _, sequence = heapq.heappop(self._line)
            if self._is_here(sequence):
                yield sequence

    def next_ticks(self) -> int | None:
        """When the next request that is still here times out."""
        while self._line and not self._is_here(self._line[0][2]):
            heapq.heappop(self._line)
        return self._line[0][0] if self._line else None

    def _is_here(self, sequence: Sequence) -> bool:
        return self._sequences.get(sequence.index) is sequence
