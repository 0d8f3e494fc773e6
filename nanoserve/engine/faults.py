"""Faults that are planted in an engine on purpose, so that whoever looks for causes can be held to the truth.

A leak: of every n-th request that leaves, some pages are never returned. Nobody holds them and nobody is told; the pool
counts them as used until the run ends. An engine whose pages have leaked away ends requests that can never be served
(`pressure`). Next: `memory`, which loses the pages; `nanoserve.experiment.Faults`, which plants it.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Leak:
    """How pages leak.

    Attributes:
      every: of so many requests that leave with pages, one leaks. pages: how many, fewer where it has fewer.
    """

    every: int
    pages: int


class Leaking:
    """Counts the requests that leave, and the pages that are lost."""

    def __init__(self, leak: Leak):
        """Nothing has leaked yet."""
        self._leak, self._left = leak, 0
        self.lost_pages = 0

    def due(self) -> int:
        """How many pages the request loses that leaves now."""
        self._left += 1
        return 0 if self._left % self._leak.every else self._leak.pages
