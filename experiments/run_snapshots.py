"""What `run.py` does about snapshots: takes them at the interval of the config, and goes on from the newest.

`Kept` wraps the two calls that the engine makes between plans, so a run without snapshots (`Unkept`) is not touched.
What a snapshot costs is measured while the run goes on, and printed with the interval that would cost least
(`nanoserve.analysis.snapshot_interval`). Next: `nanoserve.engine.snapshot`, `nanoserve.executors.snapshots`.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nanoserve.engine.snapshot import Header, Outline, freeze, thaw
from nanoserve.engine.types import to_seconds, to_ticks
from nanoserve.report.run_folder import RunFolder
from nanoserve.specs.config import Loaded
from nanoserve.specs.errors import CapacityError, ConfigError, SnapshotError

if TYPE_CHECKING:
    from nanoserve.replay import Replay

FOLDER = "snapshots"

Observe = Callable[[int, int], object]


class Unkept:
    """A run that takes no snapshots."""

    def start(self, folder: RunFolder, loaded: Loaded) -> None:
        """A run of this config starts, whose folder this is."""

    def resume(self, path: Path) -> None:
        """Refuses.

        Raises:
          SnapshotError: always; says how to have snapshots.
        """
        raise SnapshotError(
            f"there is nothing to go on from in {path}: the config takes no snapshots. Set Snapshots.interval_s, in "
            "seconds of the run's clock, and a run that is killed can be resumed"
        )

    def observing(self, observe: Observe) -> Observe:
        """Nothing happens between plans."""
        return observe

    def stopping(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """Nothing is kept of a run that is stopped."""
        return should_stop

    def how_to_go_on(self) -> str:
        """A clause for the message of a run that was stopped; empty where it cannot go on."""
        return ""

    def end(self) -> None:
        """Nothing to say, nothing to remove."""


class Kept(Unkept):
    """A run that keeps its state, and may begin with one that was kept."""

    def __init__(self, replay: "Replay", header: Header):
        """Looks at the engine, which must be fresh.

        Args:
          replay: the run. header: what a snapshot of it is of.

        Raises:
          ConfigError: a run whose state cannot be kept.
        """
        from nanoserve.engine.fleet import Fleet

        if replay.jax_executors and isinstance(replay.runner, Fleet):
            raise ConfigError(
                "Snapshots.interval_s: replicas that JAX executes are never all between two plans, so no snapshot can "
                "be taken. Leave the interval out, or simulate them with --executor=roofline"
            )
        config = replay.experiment.snapshots
        self._replay, self._header, self._outline = replay, header, Outline(replay.runner)
        self._keep, self._mtbf_s = config.keep, config.mtbf_s
        self._interval_ticks = to_ticks(config.interval_s or 0)
        self._due_ticks: int | None = None  # not known before the next plan is over
        self._taken = self._bytes = 0
        self._spent_s = 0.0

    def start(self, folder: RunFolder, loaded: Loaded) -> None:
        """Removes what an earlier run left, which this one writes over, and notes the config for `--resume=PATH`."""
        from nanoserve.executors import snapshots

        self._path = folder.path / FOLDER
        snapshots.remove(self._path)
        folder.write_config(loaded.as_written, loaded.operative)

    def resume(self, path: Path) -> None:
        """Goes on from the newest snapshot below a run's folder, and says so.

        Raises:
          SnapshotError: there is none, or it is of another run.
        """
        from nanoserve.executors import snapshots

        self._path = path / FOLDER
        found, skipped = snapshots.newest(self._path)
        print("".join(f"{line}\n" for line in skipped), end="")
        if difference := self._header.difference(snapshots.read_header(found)):
            raise SnapshotError(f"{found} is of {difference}. Resume with what the run was started with, or start anew")
        thaw(snapshots.read_state(found, self._outline), self._outline)
        into_s = to_seconds(self._replay.runner.clock.now())
        print(f"resumed from {found}: after {int(found.name):,} plans, {into_s:,.3f} s into the run")

    def observing(self, observe: Observe) -> Observe:
        """Takes a snapshot whenever one is due, after `observe` was told of the plan.

        The interval is counted from the plan after a snapshot, so that one which takes longer than it does not leave a
        real run without time for anything else.
        """

        def observed(done: int, now: int) -> None:
            observe(done, now)
            if self._due_ticks is None:
                self._due_ticks = now + self._interval_ticks
            elif now >= self._due_ticks:
                self._due_ticks = None
                self._take()

        return observed

    def stopping(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """Takes a snapshot when the run is to stop, while it is still between two plans."""

        def stops() -> bool:
            if not should_stop():
                return False
            self._take()
            return True

        return stops

    def how_to_go_on(self) -> str:
        """The flag that goes on from the last snapshot."""
        return f"; to go on, run with --resume={self._path.parent}"

    def end(self) -> None:
        """Removes the snapshots of a run that is complete, and says what they cost."""
        from nanoserve.executors import snapshots

        snapshots.remove(self._path)
        if self._taken:
            print("\n".join(self._costs()))

    def _take(self) -> None:
        from nanoserve.executors import snapshots

        begin, plans = time.perf_counter(), sum(each.engine.log.plan_count() for each in self._replay.members)
        frozen = freeze(self._replay.runner, self._outline, snapshots.is_device_array)
        try:
            self._bytes += snapshots.save(self._path, plans, self._header, frozen, self._keep)
        except CapacityError as error:  # the run itself is well
            print(f"no snapshot after {plans:,} plans: {error}", file=sys.stderr)
            return
        self._taken += 1
        self._spent_s += time.perf_counter() - begin

    def _costs(self) -> list[str]:
        each_s, rate = self._spent_s / self._taken, self._bytes / self._spent_s
        lines = [
            f"{self._taken:,} snapshots of {self._bytes / self._taken / 1e6:,.2f} MB took {each_s:.3f} s each, "
            f"{rate / 1e6:,.1f} MB/s"
        ]
        if self._mtbf_s is not None:
            lines.append(_advice(each_s, self._mtbf_s))
        return lines


def keeper_of(replay: "Replay", header: Header) -> Unkept:
    """What the run's config asks for; `replay` must be fresh."""
    return Unkept() if replay.experiment.snapshots.interval_s is None else Kept(replay, header)


def _advice(snapshot_s: float, mtbf_s: float) -> str:
    from nanoserve.analysis.snapshot_interval import best_interval_s, expected_s

    best_s = best_interval_s(snapshot_s, mtbf_s)
    loss = expected_s(1.0, best_s, snapshot_s=snapshot_s, mtbf_s=mtbf_s, recovery_s=0.0) - 1
    return (
        f"with a failure every {mtbf_s:,.0f} s they cost least every {best_s:,.1f} s of the machine's time: {loss:.2%} "
        "of it, repeated work included (Daly 2006)"
    )
