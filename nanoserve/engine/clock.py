"""Two clocks with one face: virtual time moves only when a priced step ends; wall time moves by itself."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from nanoserve.engine.types import TICKS_PER_S

_LONGEST_SLEEP_S = 0.05  # so that a signal is noticed while waiting


class Clock(Protocol):
    """Time since the start of the run, in ticks."""

    def start(self) -> None:
        """The run starts, or goes on from the moment that a snapshot of it was taken at."""
        ...

    def now(self) -> int:
        """Ticks since the run began."""
        ...

    def step_done(self, duration_ticks: int) -> int:
        """Told how long a plan took; returns the time at its end."""
        ...

    def wait_until(self, ticks: int) -> None:
        """Moves towards `ticks`; may return early, never late by more than the sleep's own jitter."""
        ...

    def stopped(self) -> contextlib.AbstractContextManager[None]:
        """What is done within takes no time."""
        ...


class VirtualClock:
    """Time that is computed: exact, and as fast as the arithmetic."""

    def __init__(self):
        """Starts at 0."""
        self._now = 0

    def start(self) -> None:
        """Nothing has passed."""

    def now(self) -> int:
        """Ticks since the run began."""
        return self._now

    def step_done(self, duration_ticks: int) -> int:
        """Adds the priced duration."""
        self._now += duration_ticks
        return self._now

    def wait_until(self, ticks: int) -> None:
        """Jumps."""
        self._now = max(self._now, ticks)

    def stopped(self) -> contextlib.AbstractContextManager[None]:
        """Only steps take time."""
        return contextlib.nullcontext()


class WallClock:
    """Time that passes."""

    def __init__(self, passed_ns: int = 0):
        """Starts now, as if so much had passed."""
        self._restored_ns = passed_ns
        self.start()

    def start(self) -> None:
        """Forgets what passed since it was made or restored."""
        self._start_ns = time.perf_counter_ns() - self._restored_ns

    def now(self) -> int:
        """Ticks since the run began."""
        return (time.perf_counter_ns() - self._start_ns) * TICKS_PER_S // 1_000_000_000

    def step_done(self, duration_ticks: int) -> int:
        """The duration has already passed."""
        return self.now()

    def wait_until(self, ticks: int) -> None:
        """Sleeps, a little at a time."""
        left_s = (ticks - self.now()) / TICKS_PER_S
        if left_s > 0:
            time.sleep(min(left_s, _LONGEST_SLEEP_S))

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done within takes no time."""
        begin_ns = time.perf_counter_ns()
        try:
            yield
        finally:
            self._start_ns += time.perf_counter_ns() - begin_ns

    def __getstate__(self) -> dict[str, int]:
        """For a snapshot: how long the run has lasted; the time of this process means nothing in another."""
        return {"_restored_ns": time.perf_counter_ns() - self._start_ns}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["_restored_ns"])
