"""Replays a trace through the engine, executed by JAX or priced by a roofline, and writes the run's folder.

    python experiments/run.py --config=llama70b_h100
    python experiments/run.py --config=smollm2_cpu --set Sampling.temperature=0.7 --set Engine.max_seqs=4
    python experiments/run.py --config=llama8b_h100 --trace=requests.csv --executor=roofline --out=/tmp/runs
    python experiments/run.py --config=smollm2_cpu --compare_executors

Exit code 0: the run is complete (`DONE` is in its folder). 2: something the user can mend, said in one message;
whatever was computed before is on disk.
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

from experiments import command
from experiments.stop import StopSignals
from nanoserve.experiment import CONFIG_CLASSES, resolve
from nanoserve.specs.config import Loaded, load
from nanoserve.specs.config import resolve as resolve_config
from nanoserve.specs.errors import CapacityError, ConfigError, NanoserveError

if TYPE_CHECKING:
    from experiments.run_compared import Alone
    from nanoserve.replay import Replay

REPOSITORY = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    try:
        with StopSignals() as signals:
            _command(arguments, signals)
            sys.stdout.flush()  # while its errors can still be reported
        return 0
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


def _command(arguments: Sequence[str], signals: StopSignals) -> None:
    asked = _parse(arguments)
    if asked.help:
        print(__doc__)
        print(asked.get_help())
        return
    loaded = _load(asked)
    if asked.print_config:
        print(loaded.operative, end="")
        return
    try:
        _run(loaded, asked, signals)
    except Exception as error:
        # JAX's own class cannot be named without importing JAX, which a simulated run does not need.
        if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
            raise CapacityError(f"the device has not enough memory: {_advised(error)}") from error
        raise


def _advised(error: Exception) -> str:
    what = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    return f"{what}. Lower Engine.num_pages, Engine.hbm_utilization or Engine.max_step_tokens"


def _parse(arguments: Sequence[str]) -> flags.FlagValues:
    asked = command.parse(arguments, _flags)
    for name in ("config", "trace", "out"):
        if asked[name].value == "":
            raise ConfigError(f"--{name}= is empty. Give it a value or leave it out")
    return asked


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("config", "llama70b_h100", "name in configs/, or path of a gin file", flag_values=own)
    flags.DEFINE_multi_string("set", [], "Class.field=value, repeatable; wins over the file", flag_values=own)
    flags.DEFINE_string("trace", None, "request log to replay instead of the config's", flag_values=own)
    flags.DEFINE_enum("executor", None, ["auto", "jax", "roofline"], "who runs the steps", flag_values=own)
    flags.DEFINE_string("out", "runs", "folder for run folders", flag_values=own)
    flags.DEFINE_bool(
        "compare_executors", False, "simulate the run too, with its programs' own times, and compare", flag_values=own
    )
    flags.DEFINE_bool("print_config", False, "print every value of the config and exit", flag_values=own)


def _load(asked: flags.FlagValues) -> Loaded:
    overrides = list(asked.set)
    if asked.trace is not None:
        overrides.append(f"TraceSource.path={asked.trace!r}")
    if asked.executor is not None:
        overrides.append(f"Experiment.executor={asked.executor!r}")
    loaded = load(resolve_config(asked.config, REPOSITORY / "configs"), CONFIG_CLASSES, "Experiment", overrides)
    resolve(loaded.value)  # misspelt models and chips are reported before anything heavy is imported
    return loaded


def _run(loaded: Loaded, asked: flags.FlagValues, signals: StopSignals) -> None:
    from experiments.run_compared import Alone, Compared
    from experiments.run_files import Outcome, print_run, write_records, write_run
    from nanoserve.replay import prepare, trace_fingerprint
    from nanoserve.report.run_folder import RunFolder, git_state, run_id

    started, name = time.perf_counter(), Path(asked.config).stem
    replay = prepare(loaded.value)
    companion = Compared() if asked.compare_executors else Alone()
    companion.check(replay)
    trace_hash = trace_fingerprint(replay.trace)
    folder = RunFolder(asked.out, name, run_id(loaded.operative, trace_hash, git_state()[0]))
    over = functools.partial(Outcome, loaded=loaded, replay=replay, trace_hash=trace_hash)
    with signals.deferred():
        print(f"{name}: {replay.choice.line}\n  {_what(replay)}", flush=True)
        try:
            complete = _execute(replay, signals, companion)
            if complete:
                companion.after(replay, folder)
        except BaseException:  # nothing already computed is lost, whatever this is
            write_records(folder, over(complete=False, elapsed_s=time.perf_counter() - started))
            print(f"the records so far are in {folder.path}, without DONE", file=sys.stderr)
            raise
        outcome = over(complete=complete, elapsed_s=time.perf_counter() - started)
        summary = write_run(folder, outcome)
        print_run(outcome, summary)
        if not complete:
            raise NanoserveError(
                f"stopped by {signals.caught} after {summary.completed:,} of {len(replay.trace):,} requests; the "
                f"records so far are in {folder.path}, without DONE"
            )
        print(folder.path)


def _what(replay: "Replay") -> str:
    experiment, trace, pool = replay.experiment, replay.trace, replay.engine.scheduler.pool
    attention = f"; attention {replay.attention}" if replay.attention else ""
    return (
        f"{replay.facts.model.name}, {len(trace):,} requests ({trace.source}), {pool.num_pages:,} pages of "
        f"{experiment.engine.page_tokens} tokens{attention}"
    )


def _execute(replay: "Replay", signals: StopSignals, companion: "Alone") -> bool:
    """Warms up, does what comes before, and runs; returns whether the run came to its end."""
    from nanoserve.engine.types import to_seconds
    from nanoserve.report.progress import Progress

    programs = replay.programs
    with Progress(programs, "compile") as progress:
        for done, program in enumerate(replay.warm_up(), start=1):
            progress.update(done, program=program)
            if signals.caught:
                return False
    companion.before(replay)
    with Progress(len(replay.trace), "requests") as progress:
        replay.run(
            should_stop=lambda: signals.caught is not None,
            observe=lambda done, now: progress.update(done, clock_s=to_seconds(now)),
        )
    return signals.caught is None


if __name__ == "__main__":
    sys.exit(main(sys.argv))
