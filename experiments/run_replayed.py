"""What `run.py --replay=runs/CONFIG/ID` does: makes a recorded run again and says whether it is the same.

A simulated run is simulated again. A real one is told what its clock and its executor said then (`engine.tape`), while
JAX makes the tokens anew: the same plans must come of it, and the same tokens. `replay.json` in the run's folder says
what was found. With `--fork_at=STEP` the run is repeated up to that step and goes on under another config, see
`run_forked`.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from experiments import command
from experiments.recorded import RecordedRun
from experiments.stop import StopSignals
from nanoserve.specs.errors import ConfigError, NanoserveError

if TYPE_CHECKING:
    from nanoserve.replay import Replay


def define_flags(own: flags.FlagValues) -> None:
    """Defines what says which run is made again, and whether it takes another turn."""
    flags.DEFINE_string("replay", None, "make the run in this folder again, and compare", flag_values=own)
    flags.DEFINE_integer(
        "fork_at", None, "with --replay: from this step on, --set changes the config", lower_bound=1, flag_values=own
    )


def check_flags(asked: flags.FlagValues) -> None:
    """Checks that the flags of a replay fit together.

    Raises:
      ConfigError: they do not.
    """
    if asked.replay is None:
        if asked.fork_at is not None:
            raise ConfigError("--fork_at needs --replay=runs/CONFIG/ID: the run that is forked")
        return
    mine = {"config", "trace", "executor", "resume", "compare_executors", "profile_steps", "processes", "print_config"}
    given = sorted(f"--{name}" for name in mine if asked[name].present)
    if given:
        raise ConfigError(f"--replay={asked.replay}: a run is made again as it was, so leave {given[0]} out")
    if asked.fork_at is None and asked.set:
        raise ConfigError(f"--set={asked.set[0]}: a run is made again as it was. With --fork_at=STEP it changes there")


def replay_run(asked: flags.FlagValues, signals: StopSignals) -> int:
    """Makes a recorded run again; returns the exit code, 0 where it is the same and 1 where it is not."""
    from experiments.run_compared import Alone
    from experiments.run_execute import execute
    from experiments.run_processes import One
    from experiments.run_snapshots import Unkept
    from nanoserve.engine.tape import Diverged

    recorded = RecordedRun("--replay", Path(asked.replay))
    replay, _ = prepared_again(recorded)
    parted = ""
    with signals.deferred():
        try:
            complete = execute(replay, signals, Alone(), Unkept(), One())
        except Diverged as error:
            complete, parted = True, str(error)
        if not complete:
            raise NanoserveError(f"stopped by {signals.caught}; nothing was compared")
        return _compared(recorded, replay, parted)


def prepared_again(recorded: RecordedRun) -> "tuple[Replay, str]":
    """A recorded run, ready to be made again, its tape in its place; and the fingerprint of its trace.

    Raises:
      ConfigError: it cannot be made again here, now, or at all.
    """
    from nanoserve.engine.tape import play
    from nanoserve.replay import prepare, trace_fingerprint

    replay = prepare(recorded.loaded.value)
    trace_hash = trace_fingerprint(replay.trace)
    recorded.check_same_world("--replay", replay, trace_hash)
    tape = recorded.tape()
    if tape is not None:
        play(replay.engine, tape)
    elif replay.jax_executor is not None:
        raise ConfigError(
            f"--replay={recorded.path}: has no tape.npy, the times that a real run was told, without which it cannot "
            "be repeated. Replicas that JAX executes leave none"
        )
    print(f"{recorded.path}: {recorded.environment['how']}", flush=True)
    return replay, trace_hash


def _compared(recorded: RecordedRun, replay: "Replay", parted: str) -> int:
    """Says what was found, on standard output and in `replay.json`; returns the exit code."""
    from nanoserve.report.run_folder import git_state

    found, commit = recorded.difference(replay), git_state()[0]
    was = recorded.environment["commit"]
    result = {
        "equal": found is None and not parted,
        "recorded_at_commit": was,
        "repeated_at_commit": commit,
        "parted": parted or None,
        "first_difference": None if found is None else dataclasses.asdict(found),
    }
    command.write_json("--replay", recorded.path / "replay.json", result)
    if was != commit:
        print(f"recorded at commit {was}, repeated at {commit}")
    if result["equal"]:
        plans = sum(member.engine.log.plan_count() for member in replay.members)
        tokens = ", every token" if replay.jax_executor else ""
        print(f"equal: {plans:,} plans, {replay.issued:,} requests, every event{tokens}")
        return 0
    print(f"different: {'; '.join(str(each) for each in (found, parted) if each)}")
    return command.EXIT_FAILED
