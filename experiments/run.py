"""Replays a trace through the engine, executed by JAX or priced by a roofline, and writes the run's folder.

    python experiments/run.py --config=llama70b_h100
    python experiments/run.py --config=smollm2_cpu --set Sampling.temperature=0.7 --set Engine.max_seqs=4
    python experiments/run.py --config=llama8b_h100 --trace=requests.csv --executor=roofline --out=/tmp/runs
    python experiments/run.py --config=smollm2_cpu --compare_executors
    python experiments/run.py --config=smollm2_cpu --profile_steps=20:25
    python experiments/run.py --config=smollm2_cpu --set Snapshots.interval_s=5 --resume
    python experiments/run.py --replay=runs/smollm2_cpu/0123456789ab
    python experiments/run.py --replay=runs/smollm2_cpu/0123456789ab --fork_at=100 --set Engine.policy=shortest_first
    python experiments/run.py --config=llama70b_h100 --coordinator=host0:1234 --processes=2 --process=0

Exit code 0: the run is complete (`DONE` is in its folder), or the one that was made again is equal. 1: it is not.
2: something the user can mend, said in one message; whatever was computed before is on disk.
"""

import errno
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command, run_processes, run_replayed
from experiments.recorded import load_recorded
from experiments.stop import StopSignals
from nanoserve.experiment import CONFIG_CLASSES, resolve
from nanoserve.specs.config import Loaded, load
from nanoserve.specs.config import resolve as resolve_config
from nanoserve.specs.errors import CapacityError, ConfigError, NanoserveError

if TYPE_CHECKING:
    from experiments.run_compared import Alone
    from experiments.run_snapshots import Unkept
    from nanoserve.engine.snapshot import Header
    from nanoserve.replay import Replay
    from nanoserve.report.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[1]
# XLA's own 0.75 would not hold what the memory model plans: 0.9 of a chip, in which the runtime's part is counted too.
GPU_MEMORY_SHARE = "0.92"


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    try:
        with StopSignals() as signals:
            code = _command(arguments, signals)
            sys.stdout.flush()  # while its errors can still be reported
        return code
    except NanoserveError as error:
        return _refuse(str(error))
    except KeyboardInterrupt as error:
        return _refuse(f"stopped by {error} before the first step; nothing was computed")
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter fails again when it flushes at its end
        return _refuse(f"cannot print to standard output: {error.strerror}. What the run had computed is in its folder")


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return command.EXIT_USER


def _command(arguments: Sequence[str], signals: StopSignals) -> int:
    asked = _parse(arguments)
    if asked.help:
        print(__doc__)
        print(asked.get_help())
        return 0
    try:
        return _of_kind(asked, signals)
    except Exception as error:
        # JAX's own class cannot be named without importing JAX, which a simulated run does not need.
        if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
            raise CapacityError(f"the device has not enough memory: {_advised(error)}") from error
        raise


def _of_kind(asked: flags.FlagValues, signals: StopSignals) -> int:
    """A run, one that is made again, or the config alone."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", GPU_MEMORY_SHARE)  # read when JAX finds its devices
    if asked.replay is not None:
        if asked.fork_at is None:
            return run_replayed.replay_run(asked, signals)
        from experiments.run_forked import fork_run

        return fork_run(asked, signals)
    loaded = _load(asked)
    if asked.print_config:
        print(loaded.operative, end="")
    else:
        _run(loaded, asked, signals)
    return 0


def _advised(error: Exception) -> str:
    what = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    return f"{what}. Lower Engine.num_pages, Engine.hbm_utilization or Engine.max_step_tokens"


def _parse(arguments: Sequence[str]) -> flags.FlagValues:
    asked = command.parse(arguments, _flags)
    for name in ("config", "trace", "out"):
        if asked[name].value == "":
            raise ConfigError(f"--{name}= is empty. Give it a value or leave it out")
    run_replayed.check_flags(asked)
    _check_profile(asked)
    return asked


def _check_profile(asked: flags.FlagValues) -> None:
    if asked.profile_steps is None:
        return
    from experiments.run_profiled import plans_of

    plans_of(asked.profile_steps)
    if asked.compare_executors:
        raise ConfigError(
            "--profile_steps and --compare_executors are of one run each: a program that is profiled takes longer than "
            "when it is timed. Leave one of them out"
        )


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("config", "llama70b_h100", "name in configs/, or path of a gin file", flag_values=own)
    flags.DEFINE_multi_string("set", [], "Class.field=value, repeatable; wins over the file", flag_values=own)
    flags.DEFINE_string("trace", None, "request log to replay instead of the config's", flag_values=own)
    flags.DEFINE_enum("executor", None, ["auto", "jax", "roofline"], "who runs the steps", flag_values=own)
    flags.DEFINE_string("out", "runs", "folder for run folders", flag_values=own)
    flags.DEFINE_bool(
        "compare_executors", False, "simulate the run too, with its programs' own times, and compare", flag_values=own
    )
    flags.DEFINE_string(
        "profile_steps", None, "FIRST:END: profile these plans of a real run, END not among them", flag_values=own
    )
    resume = "go on with a run that was killed, from its last snapshot: this config's, or that in the folder =PATH"
    flags.DEFINE_flag(flags.Flag(flags.ArgumentParser(), None, "resume", None, resume, boolean=True), own)
    run_replayed.define_flags(own)
    run_processes.define_flags(own)
    flags.DEFINE_bool("print_config", False, "print every value of the config and exit", flag_values=own)


def _load(asked: flags.FlagValues) -> Loaded:
    path = _resumed_path(asked)
    if path is not None:
        return load_recorded("--resume", path)
    overrides = list(asked.set)
    if asked.trace is not None:
        overrides.append(f"TraceSource.path={asked.trace!r}")
    if asked.executor is not None:
        overrides.append(f"Experiment.executor={asked.executor!r}")
    loaded = load(resolve_config(asked.config, REPOSITORY / "configs"), CONFIG_CLASSES, "Experiment", overrides)
    resolve(loaded.value)  # misspelt models and chips are reported before anything heavy is imported
    return loaded


def _resumed_path(asked: flags.FlagValues) -> Path | None:
    """The folder that `--resume=PATH` names; None without the flag, or where it names none."""
    if asked.resume in (None, "true", "false"):
        return None
    given = [f"--{name}" for name in ("config", "set", "trace", "executor", "out") if asked[name].present]
    if given:
        raise ConfigError(f"--resume={asked.resume}: a run goes on as it was started, so leave {given[0]} out")
    return Path(asked.resume)


def _run(loaded: Loaded, asked: flags.FlagValues, signals: StopSignals) -> None:
    from experiments.run_compared import Alone
    from experiments.run_execute import execute
    from experiments.run_files import Outcome, print_run, write_records, write_run
    from experiments.run_snapshots import Unkept, keeper_of
    from nanoserve.engine.snapshot import Header
    from nanoserve.replay import prepare, trace_fingerprint
    from nanoserve.report.run_folder import git_state

    started, group = time.perf_counter(), run_processes.group_of(asked)
    replay = prepare(loaded.value)
    group.join(replay)
    if not group.leads:
        execute(replay, signals, Alone(), Unkept(), group)
        return
    companion = _companion(asked)
    companion.check(replay)
    trace_hash = trace_fingerprint(replay.trace)
    commit, weights = git_state()[0], replay.weights_fingerprint
    header = Header(commit=commit, config=loaded.operative, trace=trace_hash, weights=weights)
    tape = replay.record()
    keeper = keeper_of(replay, header)  # looks at the engine as it will run, tape and all
    folder = _begun(asked, loaded, header, keeper)
    over = functools.partial(Outcome, loaded=loaded, replay=replay, trace_hash=trace_hash, tape=tape)
    with signals.deferred():
        print(f"{folder.path.parent.name}: {replay.choice.line}\n  {_what(replay)}", flush=True)
        try:
            complete = execute(replay, signals, companion, keeper, group)
            if complete:
                companion.after(replay, folder)
        except BaseException:  # nothing already computed is lost, whatever this is
            write_records(folder, over(complete=False, elapsed_s=time.perf_counter() - started))
            print(f"the records so far are in {folder.path}, without DONE", file=sys.stderr)
            raise
        outcome = over(complete=complete, elapsed_s=time.perf_counter() - started, profile=companion.profile)
        summary = write_run(folder, outcome)
        print_run(outcome, summary)
        if not complete:
            raise NanoserveError(
                f"stopped by {signals.caught} after {summary.completed:,} of {len(replay.trace):,} requests; the "
                f"records so far are in {folder.path}, without DONE{keeper.how_to_go_on()}"
            )
        keeper.end()
        print(folder.path)


def _companion(asked: flags.FlagValues) -> "Alone":
    """What is done before and after the run."""
    from experiments.run_compared import Alone, Compared
    from experiments.run_profiled import Profiled, plans_of

    if asked.profile_steps is not None:
        return Profiled(plans_of(asked.profile_steps))
    return Compared() if asked.compare_executors else Alone()


def _begun(asked: flags.FlagValues, loaded: Loaded, header: "Header", keeper: "Unkept") -> "RunFolder":
    """The folder of a run that starts, or of one that goes on, whose state is then as it was."""
    from nanoserve.report.run_folder import RunFolder, run_id

    named = _resumed_path(asked)
    if named is None:
        place = asked.out, Path(asked.config).stem, run_id(loaded.operative, header.trace, header.commit)
    else:
        place = named.absolute().parents[1], named.absolute().parent.name, named.name
    if asked.resume in (None, "false"):
        folder = RunFolder(*place)
        keeper.start(folder, loaded)
        return folder
    path = Path(*place)
    if (path / "DONE").exists():
        raise ConfigError(f"--resume: the run in {path} is complete; there is nothing to go on with")
    keeper.resume(path)
    return RunFolder(*place)


def _what(replay: "Replay") -> str:
    trace, pools = replay.trace, (pool.described for pool in replay.pools)
    attention = f"; attention {replay.attention}" if replay.attention else ""
    return f"{replay.facts.model.name}, {len(trace):,} requests ({trace.source}), {'; '.join(pools)}{attention}"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
