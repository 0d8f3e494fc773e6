"""A pool that hands out runs of consecutive pages, first fit: the contiguous allocator.

A request gets one run for all it may ever need, its prompt and its longest output, and keeps it until it leaves. So
nothing is ever preempted, and memory is lost in two ways that paging was made against: what was reserved and is not
used (internal fragmentation), and free runs that are too short for the next request (external fragmentation).

Invariants: free runs are disjoint, sorted, and never touch one another; free + used = all. Source: Kwon et al.,
"Efficient Memory Management for Large Language Model Serving with PagedAttention" (SOSP 2023), section 3.1. Next:
`pages`, the pool it is compared with.
"""

import bisect
from collections.abc import Sequence

from nanoserve.engine.pages import PageAccountingError


class RunPool:
    """A fixed number of pages, given and taken back in runs. Costs O(free runs)."""

    def __init__(self, num_pages: int):
        """Makes a pool of one free run, ids `0 .. num_pages - 1`."""
        self.num_pages = num_pages
        self._starts = [0]
        self._lengths = [num_pages]
        self._given: dict[int, int] = {}  # first page of a run in use -> its length

    @property
    def free_count(self) -> int:
        """Pages nobody holds."""
        return sum(self._lengths)

    @property
    def used_count(self) -> int:
        """Pages in runs that are held."""
        return self.num_pages - self.free_count

    @property
    def largest_free_run(self) -> int:
        """The longest run that could be given now."""
        return max(self._lengths, default=0)

    def alloc(self, count: int) -> list[int]:
        """Takes the first free run of at least `count` pages; no pages for a count below 1.

        Raises:
          PageAccountingError: no run is long enough; callers check `largest_free_run` first.
        """
        if count <= 0:
            return []
        place = next((place for place, length in enumerate(self._lengths) if length >= count), None)
        if place is None:
            raise PageAccountingError(f"asked for a run of {count} pages; the longest has {self.largest_free_run}")
        start = self._starts[place]
        if self._lengths[place] == count:
            del self._starts[place], self._lengths[place]
        else:
            self._starts[place] += count
            self._lengths[place] -= count
        self._given[start] = count
        return list(range(start, start + count))

    def room_after(self, pages: Sequence[int]) -> int:
        """Free pages right behind a run in use."""
        place = bisect.bisect_left(self._starts, pages[-1] + 1)
        return self._lengths[place] if place < len(self._starts) and self._starts[place] == pages[-1] + 1 else 0

    def extend(self, pages: list[int], count: int) -> None:
        """Makes a run in use longer, in place.

        Raises:
          PageAccountingError: the room behind it does not suffice; callers check `room_after` first.
        """
        end = pages[-1] + 1
        if count > self.room_after(pages):
            raise PageAccountingError(
                f"asked for {count} pages behind page {end - 1}; {self.room_after(pages)} are free"
            )
        place = bisect.bisect_left(self._starts, end)
        if self._lengths[place] == count:
            del self._starts[place], self._lengths[place]
        else:
            self._starts[place] += count
            self._lengths[place] -= count
        self._given[pages[0]] += count
        pages += range(end, end + count)

    def split(self, pages: Sequence[int], count: int) -> None:
        """Makes two runs in use of one, the first of them `count` pages long."""
        whole = self._given.pop(pages[0])
        for start, length in ((pages[0], count), (pages[0] + count, whole - count)):
            if length:
                self._given[start] = length

    def free(self, pages: Sequence[int]) -> None:
        """Takes back a run as it was given, and joins it to its free neighbours.

        Raises:
          PageAccountingError: it is not a run in use.
        """
        if not pages:
            return
        start, count = pages[0], len(pages)
        if self._given.pop(start, 0) != count:
            raise PageAccountingError(f"pages {start} to {start + count - 1} are not a run in use")
        place = bisect.bisect(self._starts, start)
        if place and self._starts[place - 1] + self._lengths[place - 1] == start:
            place -= 1
            start, count = self._starts[place], self._lengths[place] + count
            del self._starts[place], self._lengths[place]
        if place < len(self._starts) and start + count == self._starts[place]:
            count += self._lengths[place]
            del self._starts[place], self._lengths[place]
        self._starts.insert(place, start)
        self._lengths.insert(place, count)
