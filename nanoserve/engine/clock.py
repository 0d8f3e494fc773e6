"""Two clocks with one face: virtual time moves only when a priced step ends; wall time moves by itself."""

import time
from typing import Protocol

from nanoserve.engine.types import TICKS_PER_S

_LONGEST_SLEEP_S = 0.05  # so that a signal is noticed while waiting


class Clock(Protocol):
    """Time since the start of the run, in ticks."""

    def now(self) -> int:
        """Ticks since the run began."""
        ...

    def step_done(self, duration_ticks: int) -> int:
        """Told how long a plan took; returns the time at its end."""
        ...

    def wait_until(self, ticks: int) -> None:
        """Moves towards `ticks`; may return early, never late by more than the sleep's own jitter."""
        ...


class VirtualClock:
    """Time that is computed: exact, and as fast as the arithmetic."""

    def __init__(self):
        """Starts at 0."""
        self._now = 0

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


class WallClock:
    """Time that passes."""

    def __init__(self):
        """Starts now."""
        self._start_ns = time.perf_counter_ns()

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
