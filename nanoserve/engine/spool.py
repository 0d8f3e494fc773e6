"""Where records go while a run is under way: bytes that are added at the end and read back whole.

In memory by default. A real run may last for days and gives its log a spool that writes to a file
(`nanoserve.report.file_spool`), so that it does not grow with what it has already done. Next: `log`, which fills them.
"""

from collections.abc import Buffer
from typing import Protocol, Self


class Spool(Protocol):
    """Bytes that only grow."""

    def __iadd__(self, more: bytes, /) -> Self:
        """Adds some."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def whole(self) -> Buffer:
        """All of them."""
        ...


class MemorySpool(bytearray):
    """A spool that stays in memory."""

    def whole(self) -> Buffer:
        """All bytes, without a copy."""
        return self
