"""The pool of KV pages (vLLM: blocks): who holds which, and what is free.

Invariants: a page's reference count is the number of its holders; free + used = all; a page is handed out only while
its count is 0. Breaking one raises `PageAccountingError` at once, because a leaked or doubly freed page corrupts tokens
silently later. Next: `cohort`, which asks for pages as sequences grow.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol


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
    """A fixed number of pages with reference counts. Freed pages are reused last in, first out.

    A page with one holder is in `_held`; only what it has beyond one is counted. So pages that nobody shares are
    allocated and freed by whole lists, without a loop over them.
    """

    def __init__(self, num_pages: int):
        """Makes a pool of `num_pages` free pages with ids `0 .. num_pages - 1`, handed out in that order."""
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._held: set[int] = set()
        self._more_holders: dict[int, int] = {}  # of shared pages: holders beyond the first

    @property
    def free_count(self) -> int:
        """Pages nobody holds."""
        return len(self._free)

    @property
    def used_count(self) -> int:
        """Pages with at least one holder."""
        return self.num_pages - len(self._free)

    @property
    def free_pages(self) -> Sequence[int]:
        """Pages that hold nothing, the next to be handed out last."""
        return self._free

    @property
    def largest_free_run(self) -> int:
        """Pages that one sequence could be given now: all that are free, because any page will do."""
        return len(self._free)

    def holders(self, page: int) -> int:
        """Reference count of a page."""
        return self._more_holders.get(page, 0) + (page in self._held)

    def alloc(self, count: int) -> list[int]:
        """Takes `count` pages, each with one holder.

        Raises:
          PageAccountingError: fewer are free; callers check `free_count` first.
        """
        if count <= 0:
            return []
        if count > len(self._free):
            raise PageAccountingError(f"asked for {count} pages with {len(self._free)} of {self.num_pages} free")
        pages = self._free[-count:]
        del self._free[-count:]
        pages.reverse()
        self._held.update(pages)
        return pages

    def alloc_one(self) -> int:
        """Takes the page that `alloc(1)` would.

        Raises:
          PageAccountingError: none is free.
        """
        try:
            page = self._free.pop()
        except IndexError:
            raise PageAccountingError(f"asked for a page with 0 of {self.num_pages} free") from None
        self._held.add(page)
        return page

    def share(self, pages: Iterable[int]) -> None:
        """Adds one holder to each page."""
        for page in pages:
            if page not in self._held:
                raise PageAccountingError(f"page {page} is free and cannot be shared")
            self._more_holders[page] = self._more_holders.get(page, 0) + 1

    def free(self, pages: Sequence[int]) -> None:
        """Removes one holder from each page; pages without holders return to the pool, in the order given."""
        if self._more_holders:
            pages = [page for page in pages if not self._unshared(page)]
        held = len(self._held)
        self._held.difference_update(pages)
        if held - len(self._held) != len(pages):
            raise PageAccountingError(f"a page was freed twice, one of {pages}")
        self._free += pages

    def _unshared(self, page: int) -> bool:
        """Takes one of several holders from a page; False if it has no more than one."""
        more = self._more_holders.pop(page, 0)
        if more > 1:
            self._more_holders[page] = more - 1
        return more > 0
