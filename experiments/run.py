"""Replays a trace through the engine, executed by JAX or priced by a roofline, and writes the run's folder.

    python experiments/run.py --config=llama70b_h100
    python experiments/run.py --config=smollm2_cpu --set Sampling.temperature=0.7 --set Engine.max_seqs=4
    python experiments/run.py --config=llama8b_h100 --trace=requests.csv --executor=roofline --out=/tmp/runs

Exit code 0: the run is complete (`DONE` is in its folder). 2: something the user can mend, said in one message; whatever
was computed before is on disk.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from nanoserve.experiment import CONFIG_CLASSES, Experiment, resolve
from nanoserve.specs.config import Loaded, load
from nanoserve.specs.config import resolve as resolve_config
from nanoserve.specs.errors import CapacityError, ConfigError, NanoserveError

if TYPE_CHECKING:
    from nanoserve.replay import Replay

REPOSITORY = Path(__file__).resolve().parents[1]
EXIT_USER = 2

_FLAGS = flags.FlagValues()
flags.DEFINE_string("config", "llama70b_h100", "name in configs/, or path of a gin file", flag_values=_FLAGS)
flags.DEFINE_multi_string("set", [], "Class.field=value, repeatable; wins over the file", flag_values=_FLAGS)
flags.DEFINE_string("trace", None, "request log to replay instead of the config's", flag_values=_FLAGS)
flags.DEFINE_enum("executor", None, ["auto", "jax", "roofline"], "who runs the steps", flag_values=_FLAGS)
flags.DEFINE_string("out", "runs", "folder for run folders", flag_values=_FLAGS)
flags.DEFINE_bool("print_config", False, "print every value of the config and exit", flag_values=_FLAGS)
flags.DEFINE_bool("help", False, "show this help", flag_values=_FLAGS, short_name="h")


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    try:
        asked = _parse(arguments)
        if asked is None:
            return 0
        loaded = _load(asked)
        if asked.print_config:
            print(loaded.operative, end="")
            return 0
        return _run(loaded, Path(asked.config).stem, Path(asked.out))
    except NanoserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


def _parse(arguments: Sequence[str]) -> flags.FlagValues | None:
    try:
        rest = _FLAGS(arguments)
    except flags.Error as error:
        raise ConfigError(f"{error}. See --help") from error
    if _FLAGS.help:
        print(__doc__)
        print(_FLAGS.get_help())
        return None
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument '{rest[1]}'. Flags are written --name=value; see --help")
    return _FLAGS


def _load(asked: flags.FlagValues) -> Loaded:
    overrides = list(asked.set)
    if asked.trace is not None:
        overrides.append(f"TraceSource.path={asked.trace!r}")
    if asked.executor is not None:
        overrides.append(f"Experiment.executor={asked.executor!r}")
    loaded = load(resolve_config(asked.config, REPOSITORY / "configs"), CONFIG_CLASSES, "Experiment", overrides)
    resolve(loaded.value)  # misspelt models and chips are reported before anything heavy is imported
    return loaded


def _run(loaded: Loaded, name: str, out: Path) -> int:
    from nanoserve.replay import prepare, trace_fingerprint
    from nanoserve.report.run_folder import RunFolder, git_state, run_id

    experiment: Experiment = loaded.value
    started = time.perf_counter()
    replay = prepare(experiment)
    trace_hash = trace_fingerprint(replay.trace)
    folder = RunFolder(out, name, run_id(loaded.operative, trace_hash, git_state()[0]))
    print(f"{name}: {replay.choice.line}", flush=True)
    print(f"  {_what(replay)}", flush=True)
    with _stop_on_signals() as stopped_by:
        complete = _execute(replay, stopped_by)
    _write(folder, loaded, replay, trace_hash, complete, time.perf_counter() - started)
    if not complete:
        raise NanoserveError(
            f"stopped by {stopped_by[0]} after {replay.engine.log.finished_count():,} of {len(replay.trace):,} requests; "
            f"the records so far are in {folder.path}, without DONE"
        )
    print(f"{folder.path}")
    return 0


def _what(replay: "Replay") -> str:
    experiment, trace, pool = replay.experiment, replay.trace, replay.engine.scheduler.pool
    return (
        f"{replay.facts.model.name}, {len(trace):,} requests ({trace.source}), {pool.num_pages:,} pages of "
        f"{experiment.engine.page_tokens} tokens"
    )


def _execute(replay: "Replay", stopped_by: Sequence[str]) -> bool:
    """Warms up and runs; returns whether the run came to its end."""
    from nanoserve.engine.types import to_seconds
    from nanoserve.report.progress import Progress

    programs = replay.programs
    with Progress(programs, "compile") as progress:
        for done, program in enumerate(replay.warm_up(), start=1):
            progress.update(done, program=program)
            if stopped_by:
                return False
    with Progress(len(replay.trace), "requests") as progress:
        replay.run(
            should_stop=lambda: bool(stopped_by),
            observe=lambda done, now: progress.update(done, clock_s=to_seconds(now)),
        )
    return not stopped_by


@contextmanager
def _stop_on_signals() -> Iterator[list[str]]:
    """Yields a list that the first SIGINT or SIGTERM appends its name to; a second one ends the process."""
    caught: list[str] = []

    def note(number: int, _frame: object) -> None:
        if caught:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        caught.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(folder, loaded: Loaded, replay: "Replay", trace_hash: str, complete: bool, elapsed_s: float) -> None:
    from experiments.run_files import write_run

    try:
        write_run(folder, loaded, replay, trace_hash, complete=complete, elapsed_s=elapsed_s)
    except CapacityError as error:
        rescue = type(folder)(tempfile.mkdtemp(prefix="nanoserve-"), folder.path.parent.name, folder.path.name)
        write_run(rescue, loaded, replay, trace_hash, complete=complete, elapsed_s=elapsed_s)
        raise CapacityError(f"{error}. The run itself is kept in {rescue.path}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv))
