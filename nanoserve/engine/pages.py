"""The pool of KV pages (vLLM: blocks): who holds which, and what is free.

Invariants: a page's reference count is the number of its holders; free + used = all; a page is handed out only while
its count is 0. Breaking one raises `PageAccountingError` at once, because a leaked or doubly freed page corrupts tokens
silently later. Next: `cohort`, which asks for pages as sequences grow.
"""

from collections.abc import Iterable


class PageAccountingError(RuntimeError):
    """A bug in the engine: a page was freed twice, shared while free, or taken from an empty pool."""


class PagePool:
    """A fixed number of pages with reference counts. Freed pages are reused last in, first out."""

    def __init__(self, num_pages: int):
        """Makes a pool of `num_pages` free pages with ids `0 .. num_pages - 1`, handed out in that order."""
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages

    @property
    def free_count(self) -> int:
        """Pages nobody holds."""
        return len(self._free)

    @property
    def used_count(self) -> int:
        """Pages with at least one holder."""
        return self.num_pages - len(self._free)

    def holders(self, page: int) -> int:
        """Reference count of a page."""
        return self._holders[page]

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
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Adds one holder to each page."""
        for page in pages:
            if self._holders[page] == 0:
                raise PageAccountingError(f"page {page} is free and cannot be shared")
            self._holders[page] += 1

    def free(self, pages: Iterable[int]) -> None:
        """Removes one holder from each page; pages without holders return to the pool."""
        holders, free = self._holders, self._free
        for page in pages:
            left = holders[page] - 1
            if left < 0:
                raise PageAccountingError(f"page {page} was freed twice")
            holders[page] = left
            if left == 0:
                free.append(page)
