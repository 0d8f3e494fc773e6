"""What the world told a real engine, in order, so that a run can be made again decision by decision.

A scheduler has no clock and no randomness, so a simulated run repeats itself. A real one also hears the time, how many
steps an executor thinks fit before an event, and how long its plans took. `record` puts a clock and an executor between
the engine and the world that note every such answer; `play` puts in two that give the answers again, while the tokens
are made anew. An engine that asks for something else than what comes next on the tape has parted from the recorded run:
`Diverged`. One engine, one tape: a fleet on a wall clock is not recorded. Next: `clock`, `engine`.
"""

import dataclasses
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from nanoserve.engine.clock import Clock
from nanoserve.engine.engine import Engine
from nanoserve.engine.spool import MemorySpool, Spool
from nanoserve.engine.types import TICKS_PER_S, Executor, Pending, Plan, StepResult
from nanoserve.roofline.counts import StepCounts

KINDS = ("time", "steps before", "duration", "first step", "host time")
_TIME, _STEPS_BEFORE, _DURATION, _FIRST_STEP, _HOST = range(len(KINDS))

ROW = np.dtype([("kind", "i1"), ("seconds", "<i8"), ("ticks", "<i8")])
"""One answer: what it was about, and its value as whole seconds and ticks, because ticks alone are more than 64 bits
hold; a number of steps is in `ticks`."""
_pack = struct.Struct("<bqq").pack


class Diverged(Exception):
    """An engine that is played a tape does not do what the recorded one did."""


class Tape:
    """Answers, as they come."""

    def __init__(self, spool: Callable[[], Spool] = MemorySpool):
        """Starts empty; a spool that writes to a file keeps a long run's memory small."""
        self._spool = spool()

    def note(self, kind: int, ticks: int) -> None:
        """Adds an answer."""
        self._spool += _pack(kind, *divmod(ticks, TICKS_PER_S))

    def rows(self) -> np.ndarray:
        """All answers, one `ROW` each."""
        return np.frombuffer(self._spool.whole(), dtype=ROW)


def record(engine: Engine, spool: Callable[[], Spool] = MemorySpool) -> Tape:
    """Records what a fresh engine will be told; its clock and executor go on as they are behind the tape."""
    tape = Tape(spool)
    engine.clock = RecordedClock(engine.clock, tape)
    engine.executor = RecordedExecutor(engine.executor, tape)
    return tape


def play(engine: Engine, rows: np.ndarray) -> "Player":
    """Lets a fresh engine run as a recorded one did.

    Args:
      engine: of the recorded run's config; its executor makes the tokens.
      rows: `Tape.rows` of the recorded run.
    """
    player = Player(rows)
    engine.clock = PlayedClock(player)
    engine.executor = PlayedExecutor(engine.executor, player)
    return player


class RecordedClock:
    """A clock whose times are noted."""

    def __init__(self, clock: Clock, tape: Tape):
        """Asks `clock` and notes what it says."""
        self._clock, self._tape = clock, tape

    def start(self) -> None:
        """Starts the clock."""
        self._clock.start()

    def now(self) -> int:
        """Ticks since the run began."""
        return self._noted(self._clock.now())

    def step_done(self, duration_ticks: int) -> int:
        """The time at the end of a plan."""
        return self._noted(self._clock.step_done(duration_ticks))

    def wait_until(self, ticks: int) -> None:
        """Waits."""
        self._clock.wait_until(ticks)

    def stopped(self) -> AbstractContextManager[None]:
        """What is done within takes no time."""
        return self._clock.stopped()

    def _noted(self, ticks: int) -> int:
        self._tape.note(_TIME, ticks)
        return ticks


class RecordedExecutor:
    """An executor whose answers are noted, tokens apart."""

    def __init__(self, executor: Executor, tape: Tape):
        """Asks `executor` and notes what it says."""
        self.executor, self._tape = executor, tape

    def submit(self, plan: Plan) -> "_RecordedPending":
        """Starts a plan."""
        return _RecordedPending(self.executor.submit(plan), self._tape)

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """The executor's estimate."""
        steps = self.executor.steps_before(counts, span_ticks)
        self._tape.note(_STEPS_BEFORE, steps)
        return steps

    def release(self, index: int) -> None:
        """A request left."""
        self.executor.release(index)


@dataclasses.dataclass(frozen=True, slots=True)
class _RecordedPending:
    pending: Pending
    tape: Tape

    def result(self) -> StepResult:
        """The result; its times are noted."""
        result = self.pending.result()
        self.tape.note(_DURATION, result.duration_ticks)
        self.tape.note(_FIRST_STEP, result.first_step_ticks)
        self.tape.note(_HOST, result.host_ticks)
        return result

    def ready(self) -> bool:
        """Whether the plan has run."""
        return self.pending.ready()


class Player:
    """The answers of a tape, one after the other."""

    def __init__(self, rows: np.ndarray):
        """Starts at the first of `Tape.rows`."""
        self._left: Iterator[tuple[int, int, int]] = iter(rows.tolist())
        self.played = 0

    def next(self, kind: int) -> int:
        """The next answer.

        Raises:
          Diverged: it is about something else, or there is none.
        """
        recorded, seconds, ticks = next(self._left, (None, 0, 0))
        if recorded != kind:
            was = "its end" if recorded is None else f"a {KINDS[recorded]}"
            asked = f"after {self.played:,} answers the engine asks for a {KINDS[kind]}"
            raise Diverged(f"{asked}; the recorded run had {was}")
        self.played += 1
        return seconds * TICKS_PER_S + ticks


class PlayedClock:
    """The times of a recorded run."""

    def __init__(self, player: Player):
        """Takes times from `player`."""
        self._player = player

    def start(self) -> None:
        """Nothing passes."""

    def now(self) -> int:
        """What the recorded clock said."""
        return self._player.next(_TIME)

    def step_done(self, duration_ticks: int) -> int:
        """What the recorded clock said."""
        return self._player.next(_TIME)

    def wait_until(self, ticks: int) -> None:
        """The recorded run has waited."""

    def stopped(self) -> AbstractContextManager[None]:
        """Nothing passes."""
        return nullcontext()


class PlayedExecutor:
    """Makes the tokens anew, in the time that they took."""

    def __init__(self, executor: Executor, player: Player):
        """Runs plans with `executor`; what it says about time comes from `player`."""
        self.executor, self._player = executor, player

    def submit(self, plan: Plan) -> "_PlayedPending":
        """Starts a plan."""
        return _PlayedPending(self.executor.submit(plan), self._player)

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """What the recorded executor estimated."""
        return self._player.next(_STEPS_BEFORE)

    def release(self, index: int) -> None:
        """A request left."""
        self.executor.release(index)


@dataclasses.dataclass(frozen=True, slots=True)
class _PlayedPending:
    pending: Pending
    player: Player

    def result(self) -> StepResult:
        """The new result, with the recorded times."""
        result = self.pending.result()
        duration, first, host = (self.player.next(kind) for kind in (_DURATION, _FIRST_STEP, _HOST))
        return dataclasses.replace(result, duration_ticks=duration, first_step_ticks=first, host_ticks=host)

    def ready(self) -> bool:
        """Whether the plan has run."""
        return self.pending.ready()
