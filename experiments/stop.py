"""What SIGINT and SIGTERM do to a command: end it while it prepares, let it write what it has once it runs.

While nothing has been computed a signal raises `KeyboardInterrupt`, which no library swallows. Inside `deferred` the
first one is only noted, for the loop to see between two steps; a second one ends the process at once.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Takes both signals over while it is entered, and gives them back as they were."""

    def __init__(self):
        """Changes nothing until entered; only the main thread may enter."""
        self.caught: str | None = None
        self._deferred = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets the block run on after a first signal; `caught` then has its name."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.caught and self._deferred:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.caught = signal.Signals(number).name
        if not self._deferred:
            raise KeyboardInterrupt(self.caught)
        # A handler may interrupt a print, so it must not print itself.
        os.write(2, f"\n{self.caught}: writing the records after this step; once more to end at once\n".encode())
