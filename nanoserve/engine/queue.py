"""Who waits, in the order of a policy: three queues with one face.

`FcfsQueue` is first come, first served, and costs O(1). `SortedQueue` takes any steady key and costs O(log n).
`ScannedQueue` asks for every key anew when it is asked for its head, O(n). In all of them ties are broken by arrival
and then by trace row, and a preempted sequence comes back with `put`: it is older than those who came after it, so
under first come, first served it is at the head again. Next: `scheduler`, which admits the head or nobody.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from nanoserve.engine.policy import Order, OrderKey, View, fcfs
from nanoserve.engine.sequence import Sequence

ViewsOf = Callable[[Iterable[Sequence], int], list[View]]


class Queue(Protocol):
    """Waiting sequences."""

    def put(self, sequence: Sequence, now_ticks: int) -> None:
        """Adds one."""
        ...

    def head(self, now_ticks: int) -> Sequence:
        """The next to be admitted, which stays; there must be one."""
        ...

    def remove(self, sequence: Sequence, /) -> None:
        """Takes one out, wherever it is."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]: ...


def queue_for(order: Order, views_of: ViewsOf) -> Queue:
    """The cheapest queue that keeps an order."""
    if order.key is fcfs:
        return FcfsQueue()
    return SortedQueue(order.key, views_of) if order.steady else ScannedQueue(order.key, views_of)


def _age(sequence: Sequence) -> tuple[int, int]:
    return sequence.request.arrival_ticks, sequence.index


class FcfsQueue(deque[Sequence]):
    """First come, first served: a `deque`, whose length is asked for in every plan. Removing its head costs O(1)."""

    def put(self, sequence: Sequence, now_ticks: int) -> None:
        """Adds one at the end, or where its age puts it."""
        if not self or _age(self[-1]) < _age(sequence):
            self.append(sequence)
            return
        older = itertools.takewhile(lambda other: _age(other) < _age(sequence), self)
        self.insert(sum(1 for _ in older), sequence)

    def head(self, now_ticks: int) -> Sequence:
        """The oldest."""
        return self[0]


class SortedQueue:
    """A heap of keys that stay as they were when a sequence was put in."""

    def __init__(self, key: OrderKey, views_of: ViewsOf):
        """Makes an empty queue in the order of `key`."""
        self._key = key
        self._views_of = views_of
        self._heap: list[tuple[Any, tuple[int, int], int, Sequence]] = []
        self._current: dict[int, int] = {}  # request -> number of its entry; other entries are stale
        self._entries = 0  # so far

    def put(self, sequence: Sequence, now_ticks: int) -> None:
        """Adds one in O(log n)."""
        (view,) = self._views_of((sequence,), now_ticks)
        self._entries += 1
        self._current[sequence.index] = self._entries
        heapq.heappush(self._heap, (self._key(view, now_ticks), _age(sequence), self._entries, sequence))

    def head(self, now_ticks: int) -> Sequence:
        """The one with the smallest key."""
        heap = self._heap
        while self._current.get(heap[0][3].index) != heap[0][2]:
            heapq.heappop(heap)
        return heap[0][3]

    def remove(self, sequence: Sequence) -> None:
        """Takes one out in O(1); its entry is skipped later."""
        del self._current[sequence.index]

    def __len__(self) -> int:
        return len(self._current)

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[3] for entry in sorted(self._heap) if self._current.get(entry[3].index) == entry[2])


class ScannedQueue:
    """Keys that change with the time, or with what others were served, are asked for anew."""

    def __init__(self, key: OrderKey, views_of: ViewsOf):
        """Makes an empty queue in the order of `key`."""
        self._key = key
        self._views_of = views_of
        self._waiting: dict[int, Sequence] = {}  # by request

    def put(self, sequence: Sequence, now_ticks: int) -> None:
        """Adds one in O(1)."""
        self._waiting[sequence.index] = sequence

    def head(self, now_ticks: int) -> Sequence:
        """The one with the smallest key now, in O(n)."""
        views = self._views_of(self._waiting.values(), now_ticks)
        first = min(views, key=lambda view: (self._key(view, now_ticks), view.arrival_ticks, view.index))
        return self._waiting[first.index]

    def remove(self, sequence: Sequence) -> None:
        """Takes one out."""
        del self._waiting[sequence.index]

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())
