"""What `run.py --replay=RUN --fork_at=STEP --set ...` does: repeats a run up to a step, goes on under another config.

Everything before the step is the recorded run, to the bit, which is checked; so what differs afterwards comes from the
change alone. Only fields that an engine can change while requests are in it may differ (`config.CHANGEABLE`). A real
run goes on in its own time from there. The fork is written to a run folder of its own, with `fork.json` beside it.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from experiments.recorded import RecordedRun, load_recorded
from experiments.run_replayed import prepared_again
from experiments.run_snapshots import Observe, Unkept
from experiments.stop import StopSignals
from nanoserve.engine.chunking import most_chunk_tokens
from nanoserve.engine.config import CHANGEABLE, EngineConfig
from nanoserve.experiment import Experiment, resolve
from nanoserve.specs.config import Loaded
from nanoserve.specs.errors import ConfigError, NanoserveError, nearest

if TYPE_CHECKING:
    from nanoserve.replay import Replay
    from nanoserve.report.metrics import Summary
    from nanoserve.report.run_folder import RunFolder

_NS_PER_S = 1_000_000_000


def fork_run(asked: flags.FlagValues, signals: StopSignals) -> int:
    """Forks a recorded run; returns the exit code."""
    from experiments.run_compared import Alone
    from experiments.run_execute import execute
    from experiments.run_files import Outcome, write_run
    from experiments.run_processes import One
    from nanoserve.engine.tape import Diverged

    started, recorded = time.perf_counter(), RecordedRun("--replay", Path(asked.replay))
    loaded = load_recorded("--replay", recorded.path, asked.set)
    changes = changed_fields(recorded.loaded.value, loaded.value)
    resolve(loaded.value)
    replay, trace_hash = prepared_again(recorded)
    turn = Turn(replay, loaded.value.engine, asked.fork_at)
    with signals.deferred():
        try:
            complete = execute(replay, signals, Alone(), turn, One())
        except Diverged as error:
            raise NanoserveError(f"the run does not repeat itself up to step {asked.fork_at:,}: {error}") from error
        if not complete:
            raise NanoserveError(f"stopped by {signals.caught}; a fork is written once it is complete")
        turn.check(recorded)
        folder = _folder(asked.out, recorded, loaded, trace_hash, turn.step)
        folder.write_fork({"of": str(recorded.path.absolute()), "step": turn.step, "changed": changes})
        elapsed_s = time.perf_counter() - started
        summary = write_run(
            folder, Outcome(loaded=loaded, replay=replay, trace_hash=trace_hash, complete=True, elapsed_s=elapsed_s)
        )
        said = ", ".join(f"Engine.{name} {old!r} -> {new!r}" for name, (old, new) in changes.items())
        print(f"forked at step {turn.step:,}: {said}")
        print("\n".join(_beside(recorded.summary(), summary)))
        print(folder.path)
    return 0


class Turn(Unkept):
    """Lets a run that is repeated go on under another config from a step on."""

    def __init__(self, replay: "Replay", config: EngineConfig, step: int):
        """Takes a run that is ready.

        Args:
          replay: of the recorded run. config: from the fork on.
          step: device step; plans are not cut, so the fork comes after the plan that holds the step before it.

        Raises:
          ConfigError: chunks would be longer than those that a real run's programs are compiled for.
        """
        most, before = most_chunk_tokens(config), most_chunk_tokens(replay.experiment.engine)
        if replay.jax_executor is not None and most > before:
            raise ConfigError(
                f"--fork_at: chunks of {most:,} tokens; the run's programs are compiled for {before:,} at most. Fork a "
                "run with longer chunks, or make them shorter"
            )
        self._replay, self._engine, self._config, self._wanted = replay, replay.engine, config, step
        self.step: int | None = None  # where it was

    def observing(self, observe: Observe) -> Observe:
        """Changes the config after the plan in question."""

        def observed(done: int, now: int) -> None:
            observe(done, now)
            if self.step is None and self._engine.scheduler.steps_planned >= self._wanted:
                self._take(now)

        return observed

    def check(self, recorded: RecordedRun) -> None:
        """Checks that the fork was reached, and that all before it is the recorded run.

        Raises:
          NanoserveError: it is not.
        """
        from nanoserve.report.difference import table_difference

        if self.step is None:
            planned = self._engine.scheduler.steps_planned
            raise NanoserveError(f"--fork_at={self._wanted}: the run has only {planned:,} steps")
        both = (recorded.steps(), self._replay.records().steps)
        before = [steps.filter(steps["step"] < self.step) for steps in both]
        if found := table_difference("plans", "step", *before):
            raise NanoserveError(f"the run does not repeat itself up to step {self.step:,}: {found}")

    def _take(self, now: int) -> None:
        from nanoserve.engine.clock import WallClock
        from nanoserve.engine.tape import PlayedExecutor
        from nanoserve.engine.types import TICKS_PER_S

        engine = self._engine
        self.step = engine.scheduler.steps_planned
        engine.scheduler.change(self._config, now)
        if isinstance(engine.executor, PlayedExecutor):  # no tape knows how it goes on
            engine.executor = engine.executor.executor
            engine.clock = WallClock(now * _NS_PER_S // TICKS_PER_S)


def changed_fields(before: Experiment, after: Experiment) -> dict[str, tuple[Any, Any]]:
    """Fields of the engine's config that a fork changes, with both values.

    Raises:
      ConfigError: nothing changes, or something that cannot change while requests are in the engine.
    """
    if dataclasses.replace(before, engine=after.engine) != after:
        parts = [field.name for field in dataclasses.fields(before)]
        name = next(name for name in parts if name != "engine" and getattr(before, name) != getattr(after, name))
        raise ConfigError(f"--fork_at: only fields of Engine can change in the middle of a run, not the {name}")
    changes = {
        field.name: (old, new)
        for field in dataclasses.fields(EngineConfig)
        if (old := getattr(before.engine, field.name)) != (new := getattr(after.engine, field.name))
    }
    if not changes:
        raise ConfigError("--fork_at: nothing changes there. Say what does, as in --set Engine.policy=shortest_first")
    for name in changes:
        if name not in CHANGEABLE:
            raise ConfigError(
                f"--fork_at: Engine.{name} cannot change while requests are in the engine.{nearest(name, CHANGEABLE)}"
            )
    return changes


def _folder(out: str, recorded: RecordedRun, loaded: Loaded, trace_hash: str, step: int | None) -> "RunFolder":
    """The fork's own folder: named by its config, where it began, and what it is a fork of."""
    from nanoserve.report.run_folder import RunFolder, git_state, run_id

    origin = f"{loaded.operative}# fork of {recorded.path.name} at step {step}\n"
    name = recorded.path.absolute().parent.name
    return RunFolder(out, name, run_id(origin, trace_hash, git_state()[0]))


def _beside(recorded: Mapping[str, Any], forked: "Summary") -> list[str]:
    """Both runs in a few lines."""
    from nanoserve.report.units import count, time

    here = forked.as_dict()
    rows = [
        *((f"{name.upper()} {q}", f"{name}_s", q, time) for name in ("ttft", "tpot") for q in ("p50", "p95")),
        ("goodput, 1/s", "goodput_rps", None, lambda rate: f"{rate:.3g}"),
        ("preemptions", "preemptions", None, count),
        ("refused", "finish_reasons", "refused", count),
    ]
    lines = [f"{'':14}{'recorded':>12}{'forked':>12}"]
    for label, key, inner, words in rows:
        values = (each[key] if inner is None else each[key][inner] for each in (recorded, here))
        lines.append(f"{label:14}" + "".join(f"{'-' if value is None else words(value):>12}" for value in values))
    return lines
