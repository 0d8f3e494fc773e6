"""The pool of KV pages (vLLM: blocks): what is free, and who holds the rest.

Invariants: free + used = all; a page is handed out only while nobody holds it. Breaking one raises
`PageAccountingError`, because a leaked or doubly freed page corrupts tokens silently later: at once in a
`CheckedPagePool`, which real runs have. In simulated runs pages hold nothing, and knowing who holds each of them is
most of what a page costs there; a `PagePool` counts, which tells the same before a run can end well. Next: `cohort`,
which asks for pages as sequences grow.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, override


class PageAccountingError(RuntimeError):
    """A bug in the engine: a page was freed twice, shared while free, or taken from an empty pool."""


class Pool(Protocol):
    """What gives pages one by one: a `PagePool`, or one that remembers what pages hold (`prefix`)."""

    @property
    def free_count(self) -> int:
        """Pages nobody holds."""
        ...

    def alloc(self, count: int) -> list[int]:
        """Takes so many pages."""
        ...

    def alloc_one(self) -> int:
        """Takes a page."""
        ...


class PagePool:
    """A fixed number of pages, each with one holder at most. Freed pages are reused last in, first out."""

    def __init__(self, num_pages: int):
        """Makes a pool of `num_pages` free pages with ids `0 .. num_pages - 1`, handed out in that order."""
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def free_count(self) -> int:
        """Pages nobody holds."""
        return len(self._free)

    @property
    def used_count(self) -> int:
        """Pages with a holder."""
        return self.num_pages - len(self._free)

    @property
    def free_pages(self) -> Sequence[int]:
        """Pages that hold nothing, the next to be handed out last."""
        return self._free

    @property
    def largest_free_run(self) -> int:
        """Pages that one sequence could be given now: all that are free, because any page will do."""
        return len(self._free)

    def alloc(self, count: int) -> list[int]:
        """Takes `count` pages, each with one holder.

        Raises:
          PageAccountingError: fewer are free; callers check `free_count` first.
        """
        free = self._free
        if count > len(free):
            raise PageAccountingError(f"asked for {count} pages with {len(free)} of {self.num_pages} free")
        if count <= 0:
            return []
        pages = free[-count:]
        del free[-count:]
        pages.reverse()
        return pages

    def alloc_one(self) -> int:
        """Takes the page that `alloc(1)` would.

        Raises:
          PageAccountingError: none is free.
        """
        try:
            return self._free.pop()
        except IndexError:
            raise PageAccountingError(f"asked for a page with 0 of {self.num_pages} free") from None

    def free(self, pages: Sequence[int]) -> None:
        """Returns pages to the pool, in the order given.

        Raises:
          PageAccountingError: more pages are free than there are, so one was freed twice.
        """
        self._free += pages
        if len(self._free) > self.num_pages:
            raise PageAccountingError(f"{len(self._free)} pages are free of {self.num_pages}: one was freed twice")


class CheckedPagePool(PagePool):
    """One that knows which pages are held, and by how many: pages can be shared, and misuse is reported at once.

    A page's reference count is the number of its holders. A page with one holder is in `_held`; only what it has beyond
    one is counted. So pages that nobody shares are allocated and freed by whole lists, without a loop over them.
    """

    def __init__(self, num_pages: int):
        """As `PagePool`."""
        super().__init__(num_pages)
        self._held: set[int] = set()
        self._more_holders: dict[int, int] = {}  # of shared pages: holders beyond the first

    def holders(self, page: int) -> int:
        """Reference count of a page."""
        return self._more_holders.get(page, 0) + (page in self._held)

    @override
    def alloc(self, count: int) -> list[int]:
        pages = super().alloc(count)
        self._held.update(pages)
        return pages

    @override
    def alloc_one(self) -> int:
        page = super().alloc_one()
        self._held.add(page)
        return page

    def share(self, pages: Iterable[int]) -> None:
        """Adds one holder to each page."""
        for page in pages:
            if page not in self._held:
                raise PageAccountingError(f"page {page} is free and cannot be shared")
            self._more_holders[page] = self._more_holders.get(page, 0) + 1

    @override
    def free(self, pages: Sequence[int]) -> None:
        """Removes one holder from each page; pages without holders return to the pool, in the order given.

        Raises:
          PageAccountingError: nobody held one of them.
        """
        if self._more_holders:
            pages = [page for page in pages if not self._unshared(page)]
        held = len(self._held)
        self._held.difference_update(pages)
        if held - len(self._held) != len(pages):
            raise PageAccountingError(f"a page was freed twice, one of {pages}")
        super().free(pages)

    def _unshared(self, page: int) -> bool:
        """Takes one of several holders from a page; False if it has no more than one."""
        more = self._more_holders.pop(page, 0)
        if more > 1:
            self._more_holders[page] = more - 1
        return more > 0
