"""The sequences that decode together, advanced all at once.

Every member gains exactly one token a step, so nothing is counted per member: a member's KV length is what it had when
it joined plus the steps since, the sum over members grows by their number, and the next finish and the next full
sliding window are heap tops. All members that begin a page at the same step, modulo the page size, do so together for
as long as they live, so they are kept together. A step costs O(changes), not O(members); this is what makes the replay
fast and what tells a plan's horizon.

Invariants: every live member has exactly one current entry in `_finish`, and entries of members that left are
recognised by their stale `join` number and skipped; every live member is in one bucket of `_page_begins`; steps that
pages were reserved for are taken before anyone joins, or whoever joins gets its own (`reserve_for`). Next: `scheduler`.
"""

import heapq
from collections.abc import Iterator, Mapping
from itertools import chain

from nanoserve.engine.pages import Pool
from nanoserve.engine.sequence import Sequence

_Entry = tuple[int, int, Sequence]  # (cohort step, join number, member)


class DecodeCohort:
    """Decoding sequences and their shared step counter."""

    def __init__(self, page_tokens: int, window_tokens: int | None = None):
        """Makes an empty cohort.

        Args:
          page_tokens: tokens per page.
          window_tokens: the model's sliding window, or None.
        """
        self.page_tokens = page_tokens
        self.window_tokens = window_tokens
        self.step = 0
        self.members: dict[int, Sequence] = {}  # by request index, in join order
        self._joins = 0
        self._kv_base = 0  # sum of (kv_tokens - step) over members
        self._finish: list[_Entry] = []
        # By step modulo page_tokens: request index -> pages, a sequence's own list, which it keeps while it decodes.
        self._page_begins: list[dict[int, list[int]]] = [{} for _ in range(page_tokens)]
        self._paged = 0  # every member has its pages for the steps before this one
        self._window_due: list[_Entry] = []  # members whose window is still filling
        self._filling = 0
        self._filling_base = 0

    def __len__(self) -> int:
        return len(self.members)

    @property
    def kv_tokens(self) -> int:
        """KV positions written by all members."""
        return self._kv_base + len(self.members) * self.step

    def kv_of(self, sequence: Sequence) -> int:
        """KV positions written by one member."""
        return sequence.kv_tokens + self.step - sequence.joined_step

    def generated_of(self, sequence: Sequence) -> int:
        """Output tokens of one member."""
        return sequence.generated + self.step - sequence.joined_step

    def join(self, sequence: Sequence) -> None:
        """Adds a sequence that has sampled its first token and wants at least one more."""
        self._joins += 1
        sequence.join = self._joins
        sequence.joined_step = self.step
        self.members[sequence.index] = sequence
        base = sequence.kv_tokens - self.step
        self._kv_base += base
        left = sequence.request.output_tokens - sequence.generated
        heapq.heappush(self._finish, (self.step + left, self._joins, sequence))
        self._page_begins[-base % self.page_tokens][sequence.index] = sequence.pages
        if self.window_tokens is not None and sequence.kv_tokens + 1 < self.window_tokens:
            self._filling += 1
            self._filling_base += base
            heapq.heappush(self._window_due, (self.window_tokens - 1 - base, self._joins, sequence))

    def leave(self, sequence: Sequence) -> None:
        """Removes a member and writes its counters back into it."""
        del self.members[sequence.index]
        base = sequence.kv_tokens - sequence.joined_step
        del self._page_begins[-base % self.page_tokens][sequence.index]
        self._kv_base -= base
        if self.window_tokens is not None and base + self.step + 1 < self.window_tokens:
            self._filling -= 1
            self._filling_base -= base
        sequence.kv_tokens = base + self.step
        sequence.generated += self.step - sequence.joined_step
        sequence.join = 0

    def steps_to_change(self) -> int:
        """Steps until a member finishes by length or its window fills: beyond them the composition changes."""
        limit = self._top(self._finish)[0] - self.step
        if self._filling:
            limit = min(limit, max(1, self._top(self._window_due)[0] - self.step))
        return limit

    def reserve(self, pool: Pool, steps: int) -> int:
        """Gives members the pages for up to `steps` steps, in the order they will need them, whole steps only.

        Returns:
          The number of steps that the pages suffice for; fewer than `steps` when the pool ran out, 0 when not all
          members can take even the next step.
        """
        first, end = self._paged if self._paged > self.step else self.step, self.step + steps
        if first >= end:
            return steps
        begins, size = self._page_begins, self.page_tokens
        if first + 1 == end:
            due = begins[first % size].values()
        else:
            start, count = first % size, end - first
            turn = begins[start:] + begins[:start]
            due = list(chain.from_iterable(map(dict.values, turn * (count // size) + turn[: count % size])))
        if due:
            if len(due) > pool.free_count:
                return self._reserve_some(pool, first)
            for _ in map(list.append, due, pool.alloc(len(due))):
                pass
        self._paged = end
        return steps

    def _reserve_some(self, pool: Pool, step: int) -> int:
        """Gives members their pages from `step` on, until the pool cannot serve all of a step."""
        while len(begins := self._page_begins[step % self.page_tokens]) <= pool.free_count:
            for pages in begins.values():
                pages.append(pool.alloc_one())
            step += 1
        self._paged = step
        return step - self.step

    def short(self) -> tuple[Sequence, int]:
        """Of the members that begin a page in the next step, the last to join, and how many they are."""
        begins = self._page_begins[self.step % self.page_tokens]
        return self.members[next(reversed(begins))], len(begins)

    def reserve_for(self, pool: Pool, late: Sequence) -> None:
        """Gives a member that joined after pages were reserved those of the same steps; there must be as many."""
        for step in range(self.step, self._paged):
            if late.index in self._page_begins[step % self.page_tokens]:
                late.pages.append(pool.alloc_one())

    def attended(self, steps: int) -> tuple[int, int]:
        """KV positions attended over the next `steps` steps by all members: in full, and within the window.

        `steps` must not pass `steps_to_change()`.
        """
        count, triangle = len(self.members), steps * (steps - 1) // 2
        full = steps * (self._kv_base + count * (self.step + 1)) + count * triangle
        if self.window_tokens is None:
            return full, full
        first = self._filling_base + self._filling * (self.step + 1) + (count - self._filling) * self.window_tokens
        return full, steps * first + self._filling * triangle

    def advance(self, steps: int, gained: Mapping[int, int] | None = None) -> list[Sequence]:
        """Moves every member `steps` tokens on and removes those that have all their tokens.

        Args:
          steps: taken by all. gained: None; who gains tokens at its own pace is in another cohort (`speculating`).

        Returns:
          The finished members, in join order, counters written back.
        """
        self.step += steps
        if self._window_due:
            self._retire_full_windows()
        due, finished = self._finish, []
        while due:
            when, join, sequence = due[0]
            if sequence.join == join:
                if when > self.step:
                    break
                finished.append(sequence)
                self.leave(sequence)
            heapq.heappop(due)
        return finished

    def youngest(self) -> Sequence:
        """The member that joined last: the one to preempt under first come, first served."""
        return next(reversed(self.members.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.members.values())

    def _retire_full_windows(self) -> None:
        due = self._window_due
        while due and (due[0][2].join != due[0][1] or due[0][0] <= self.step):
            _, join, sequence = heapq.heappop(due)
            if sequence.join == join:
                self._filling -= 1
                self._filling_base -= sequence.kv_tokens - sequence.joined_step

    def _top(self, heap: list[_Entry]) -> _Entry:
        while heap[0][2].join != heap[0][1]:
            heapq.heappop(heap)
        return heap[0]
