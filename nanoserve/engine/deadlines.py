"""When requests time out: a line of (time, request), oldest first; whoever has left is dropped in passing."""

from collections import deque
from collections.abc import Iterator, Mapping

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.sequence import Sequence
from nanoserve.engine.types import to_ticks


class Deadlines:
    """Time-outs of the requests in an engine. Costs O(1) a request, and nothing where nobody times out."""

    def __init__(self, config: EngineConfig, sequences: Mapping[int, Sequence]):
        """Makes an empty line. `sequences` are all that are in the engine, by request."""
        self._timeout_ticks = None if config.timeout_s is None else to_ticks(config.timeout_s)
        self._sequences = sequences
        self._line: deque[tuple[int, Sequence]] = deque()

    def add(self, sequence: Sequence) -> None:
        """A request came."""
        if self._timeout_ticks is not None:
            self._line.append((sequence.request.arrival_ticks + self._timeout_ticks, sequence))

    def passed(self, now_ticks: int) -> Iterator[Sequence]:
        """Those who are still here and whose time is up; each once."""
        while self._line and self._line[0][0] <= now_ticks:
            _, sequence = self._line.popleft()
            if self._is_here(sequence):
                yield sequence

    def next_ticks(self) -> int | None:
        """When the next request that is still here times out."""
        while self._line and not self._is_here(self._line[0][1]):
            self._line.popleft()
        return self._line[0][0] if self._line else None

    def _is_here(self, sequence: Sequence) -> bool:
        return self._sequences.get(sequence.index) is sequence
