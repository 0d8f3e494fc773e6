"""Pages that outlive their sequences: the prefix cache, as a pool that remembers what its pages hold.

A page is known by a key: a number that stands for its tokens and for all tokens before them. Who needs the same tokens
at the same place shares the page. When its last holder lets go of it, a known page is not emptied but cached: it counts
as free, keeps its KV, and is evicted only when a page is wanted and no empty one is left.

Which cached page goes first is a small object with the face of `Eviction`: the least recently used, or the one whose
worth is least (`GreedyDual`). Both give up the pages of a sequence from its end, because a chain of pages is found from
its beginning and what lies behind a gap is lost.

Invariants: a key belongs to at most one page and a page to at most one key; a cached page has no other holder; free +
used = all, cached pages being free. Keys come from outside (`PageKeys`); that equal keys mean equal tokens is their
maker's promise. Source: Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs" (NeurIPS
2024), section 3; hashed chains of pages as in vLLM. Next: `memory`, which asks for keys and shares pages.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from nanoserve.engine.pages import CheckedPagePool, PageAccountingError

PageKeys = Callable[[int, int], Sequence[int]]
"""(request, tokens) -> keys of the full pages among the request's first `tokens` tokens, prompt and generated, in
order; fewer where it is not known what the later ones hold."""

PageCost = Callable[[int], float]
"""Depth of a page in its sequence, from 0 -> what it costs to compute that page again, in any unit."""


_FEW = 64  # stale entries that are not worth a new heap


class Eviction(Protocol):
    """Cached pages, and the order in which they go."""

    def put(self, pages: Iterable[tuple[int, int]]) -> None:
        """Adds (page, depth) of pages that one sequence let go of, the deepest first."""
        ...

    def take(self, page: int) -> None:
        """Removes a page that is wanted again."""
        ...

    def pop(self) -> int:
        """Removes the page that goes first; there must be one."""
        ...

    def __contains__(self, page: int) -> bool: ...

    def __len__(self) -> int: ...


class LeastRecentlyUsed:
    """The page that was let go of first goes first."""

    def __init__(self):
        """Makes an empty cache."""
        self._pages: OrderedDict[int, None] = OrderedDict()

    def put(self, pages: Iterable[tuple[int, int]]) -> None:
        """Adds pages at the end."""
        for page, _ in pages:
            self._pages[page] = None

    def take(self, page: int) -> None:
        """Removes a page in O(1)."""
        del self._pages[page]

    def pop(self) -> int:
        """Removes the oldest."""
        return self._pages.popitem(last=False)[0]

    def __contains__(self, page: int) -> bool:
        return page in self._pages

    def __len__(self) -> int:
        return len(self._pages)


class GreedyDual:
    """The page worth least goes first: worth is what it costs to compute again, on a floor that rises with evictions.

    The floor is the worth of the page that went last, so a page that is dear but never wanted goes in the end. A page
    is worth at least as much as the pages that hang on it: they are useless without it.

    Source: Young, "The k-Server Dual and Loose Competitiveness for Paging" (Algorithmica 11, 1994), and Cao and Irani,
    "Cost-Aware WWW Proxy Caching Algorithms" (USITS 1997), with pages of one size.
    """

    def __init__(self, cost: PageCost):
        """Makes an empty cache. `cost` says what a page at a depth costs to compute again."""
        self._cost = cost
        self._floor = 0.0
        self._worth: dict[int, float] = {}  # of pages that were put in and have not been evicted
        self._entries: dict[int, int] = {}  # cached page -> number of its entry; others in the heap are stale
        self._heap: list[tuple[float, int, int]] = []  # (worth, number of the entry, page)
        self._count = 0

    def put(self, pages: Iterable[tuple[int, int]]) -> None:
        """Adds pages in O(log n) each."""
        behind = 0.0
        for page, depth in pages:
            behind = max(self._floor + self._cost(depth), behind, self._worth.get(page, 0.0))
            self._count += 1
            self._worth[page], self._entries[page] = behind, self._count
            heapq.heappush(self._heap, (behind, self._count, page))
        if len(self._heap) > 2 * len(self._entries) + _FEW:
            self._heap = [entry for entry in self._heap if self._entries.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def take(self, page: int) -> None:
        """Removes a page in O(1); its worth is remembered."""
        del self._entries[page]

    def pop(self) -> int:
        """Removes the page worth least, of several the one that was put in first, and raises the floor."""
        while True:
            worth, number, page = heapq.heappop(self._heap)
            if self._entries.get(page) == number:
                del self._entries[page], self._worth[page]
                self._floor = worth
                return page

    def __contains__(self, page: int) -> bool:
        return page in self._entries

    def __len__(self) -> int:
        return len(self._entries)


def eviction(name: Literal["lru", "cost"], cost: PageCost | None) -> Eviction:
    """The order of eviction of this name; `cost` needs to know what pages cost."""
    if name == "lru":
        return LeastRecentlyUsed()
    if cost is None:
        raise ValueError("eviction by cost needs the cost of a page")
    return GreedyDual(cost)


class CachedPagePool:
    """A `CheckedPagePool` that remembers what is in its pages. Costs a little for every page, not just every list."""

    def __init__(self, num_pages: int, cached: Eviction):
        """Makes a pool of empty pages.

        Args:
          num_pages: P. cached: holds the cached pages; must be empty.
        """
        self.num_pages = num_pages
        self._pool = CheckedPagePool(num_pages)
        self._cached = cached
        self._page_of: dict[int, int] = {}  # by key
        self._key_of: dict[int, int] = {}  # by page
        self.repeated_count = 0  # holders beyond the first, over all pages

    @property
    def free_count(self) -> int:
        """Pages nobody holds: empty and cached ones."""
        return self._pool.free_count + len(self._cached)

    @property
    def used_count(self) -> int:
        """Pages with at least one holder."""
        return self.num_pages - self.free_count

    @property
    def cached_count(self) -> int:
        """Pages nobody holds whose content is known."""
        return len(self._cached)

    @property
    def free_pages(self) -> Sequence[int]:
        """Pages that hold nothing, the next to be handed out last."""
        return self._pool.free_pages

    @property
    def largest_free_run(self) -> int:
        """Pages that one sequence could be given now: all that are free, because any page will do."""
        return self.free_count

    def holders(self, page: int) -> int:
        """Reference count of a page."""
        return self._pool.holders(page) - (page in self._cached)

    def find(self, keys: Sequence[int]) -> list[int]:
        """The pages of the longest chain of keys that is known, from the first."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def held(self, pages: Iterable[int]) -> int:
        """How many of these pages somebody holds: sharing them takes nothing from the free ones."""
        return sum(page not in self._cached for page in pages)

    def know(self, page: int, key: int) -> None:
        """Learns what a page holds that somebody holds; another page of the same content stays the known one."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def alloc(self, count: int) -> list[int]:
        """Takes `count` pages, each with one holder, evicting cached ones where empty ones do not suffice.

        Raises:
          PageAccountingError: fewer are free; callers check `free_count` first.
        """
        if count > self.free_count:
            raise PageAccountingError(f"asked for {count} pages with {self.free_count} of {self.num_pages} free")
        for _ in range(count - self._pool.free_count):
            self._evict()
        return self._pool.alloc(count)

    def alloc_one(self) -> int:
        """Takes the page that `alloc(1)` would.

        Raises:
          PageAccountingError: none is free.
        """
        if not self._pool.free_count and self._cached:
            self._evict()
        return self._pool.alloc_one()

    def share(self, pages: Iterable[int]) -> None:
        """Adds one holder to each page; the first holder of a cached one takes it from the cache."""
        for page in pages:
            if page in self._cached:
                self._cached.take(page)
            else:
                self._pool.share((page,))
                self.repeated_count += 1

    def free(self, pages: Sequence[int]) -> None:
        """Removes one holder from each page of a sequence, given in position order; known ones are cached.

        Raises:
          PageAccountingError: nobody holds one of them.
        """
        if len(set(pages)) < len(pages):
            raise PageAccountingError(f"a page was freed twice, one of {pages}")
        empty, cached = [], []
        for depth in range(len(pages) - 1, -1, -1):
            page = pages[depth]
            if self._pool.holders(page) > 1:
                self.repeated_count -= 1
                empty.append(page)
            elif page not in self._key_of:
                empty.append(page)
            elif page in self._cached:
                raise PageAccountingError(f"page {page} was freed twice: nobody holds it, its content is cached")
            else:
                cached.append((page, depth))
        empty.reverse()
        self._pool.free(empty)
        self._cached.put(cached)

    def _evict(self) -> None:
        page = self._cached.pop()
        del self._page_of[self._key_of.pop(page)]
        self._pool.free((page,))
