"""A spool (`nanoserve.engine.spool`) whose bytes go to a file without a name, which goes with the process.

Invariant: at most `HELD_BYTES` are in memory. A snapshot takes the bytes along and puts them into a new file.
"""

import tempfile
from typing import Self

from nanoserve.specs.errors import CapacityError

HELD_BYTES = 1 << 18


class FileSpool:
    """Bytes that only grow, on disk."""

    def __init__(self):
        """Opens an empty file in the system's folder for such.

        Raises:
          CapacityError: there is none that can be written.
        """
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the spool lives
        except OSError as error:
            raise CapacityError(f"no file for a run's records: {error}. Set TMPDIR to a folder with room") from None
        self._held = bytearray()
        self._written = 0

    def __iadd__(self, more: bytes) -> Self:
        self._held += more
        if len(self._held) >= HELD_BYTES:
            self._write()
        return self

    def __len__(self) -> int:
        return self._written + len(self._held)

    def whole(self) -> bytes:
        """All bytes, read back."""
        self._write()
        self._file.seek(0)
        return self._file.read()

    def _write(self) -> None:
        self._file.seek(0, 2)
        self._file.write(self._held)
        self._file.flush()
        self._written += len(self._held)
        self._held.clear()

    def __getstate__(self) -> bytes:
        return self.whole()

    def __setstate__(self, state: bytes) -> None:
        self.__init__()
        self += state
