"""Measures a device whole: its ceilings, single operations, whole steps, and a short replay, in one file.

    python experiments/bench/h100.py --out=h100.json --seconds=540
    python experiments/bench/h100.py --out=h100.json --resume --parts=step --cases='8b_decode_*'
    JAX_PLATFORMS=cpu python experiments/bench/h100.py --toy --out=toy.json

The file is whole after every case; `--resume` leaves out what it has measured, and takes what failed again, after
everything else. With `--seconds` no case is started after so many, so that a call that is limited in time ends with a
table. A part that cannot be loaded, or a case that fails, stops no other, unless the device answers no more. Times
count on an accelerator only; `--toy` shows anywhere that the command works.

Exit code 0: all cases were measured, or skipped for a reason that stands in the table. 1: one failed, or could not be
started. 2: something the user can mend. 130: interrupted; everything measured is kept.

Next: `parts` (what is measured), `h100_measuring` (case after case), `h100_results` (the file), `h100_table`,
`h100_goals`, `h100_page`.
"""

import difflib
import fnmatch
import functools
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.bench import parts
from experiments.bench.h100_goals import goal_lines
from experiments.bench.h100_measuring import Todo, measure_all, todo
from experiments.bench.h100_results import Results, resumed
from experiments.bench.h100_table import tables
from experiments.bench.parts import PARTS, SHARED_MEMORY, USUAL, Case, Part
from nanoserve.specs.errors import ConfigError, nearest

MOST_LISTED = 12
MEMORY_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
# XLA's pool is three quarters of a GPU by default: weights of 70B in 4 bits and their KV do not fit in that.
USUAL_SHARE = 0.92
CPU_NOTE = "a CPU's times say nothing about an accelerator"


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    return command.run(arguments, __doc__, _flags, functools.partial(_command, ["python", *arguments]))


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_list("parts", list(USUAL), f"of {', '.join(PARTS)}", flag_values=own)
    flags.DEFINE_list("cases", [], "names, CASE or PART/CASE, with '*'; if empty, all but extras", flag_values=own)
    flags.DEFINE_bool("toy", False, "tiny sizes, which a CPU finishes in minutes", flag_values=own)
    flags.DEFINE_string("out", None, "write results to this JSON file, after every case", flag_values=own)
    flags.DEFINE_bool("resume", False, "leave out what --out has measured already", flag_values=own)
    flags.DEFINE_string("commit", None, "what these files are, where there is no git to ask", flag_values=own)
    flags.DEFINE_float("seconds", None, "start no case after so many seconds", lower_bound=0, flag_values=own)


def _command(words: Sequence[str], asked: flags.FlagValues) -> int:
    begin_s = time.perf_counter()
    if asked.resume and not asked.out:
        raise ConfigError("--resume goes on with a file: name it with --out")
    command.known("--parts", "part", asked.parts, PARTS)
    loaded, missing = _loaded([name for name in PARTS if name in asked.parts])
    chosen = select(asked.cases, {part.NAME: part.cases(asked.toy) for part in loaded.values()})
    os.environ.setdefault(MEMORY_SHARE, str(memory_share(loaded, asked.toy)))
    results = _begun(asked, words, missing)
    waiting = todo(chosen, results)
    try:
        code = _measure(waiting, loaded, results, asked, begin_s)
    except KeyboardInterrupt:
        print("interrupted; with --resume the same command goes on", file=sys.stderr)
        code = command.EXIT_INTERRUPTED
    _show(results, missing)
    return code or (command.EXIT_FAILED if missing or results.failed() else 0)


def select(patterns: Sequence[str], cases: Mapping[str, Sequence[Case]]) -> dict[str, list[Case]]:
    """The cases that any pattern names, by part.

    Args:
      patterns: CASE or PART/CASE with `*` and `?` as in file names; none means every case that is not an extra.
      cases: of each part.

    Raises:
      ConfigError: for a pattern that names no case.
    """
    names = [f"{part}/{case.name}" for part, of_part in cases.items() for case in of_part]
    for pattern in patterns:
        if not any(_named(name, [pattern]) for name in names):
            raise ConfigError(f"--cases={pattern} names no case.{_hint(pattern, names)} Names may hold '*'")
    return {
        part: [case for case in of_part if (_named(f"{part}/{case.name}", patterns) if patterns else not case.extra)]
        for part, of_part in cases.items()
    }


def _named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a PART/CASE fits a pattern, with or without its part."""
    case = name.partition("/")[2]
    return any(fnmatch.fnmatchcase(name if "/" in pattern else case, pattern) for pattern in patterns)


def _hint(pattern: str, names: Sequence[str]) -> str:
    """The nearest name; a hundred names where none is near would help nobody."""
    valid = names if "/" in pattern else [name.partition("/")[2] for name in names]
    close = difflib.get_close_matches(pattern, valid, n=1, cutoff=0.5)
    return nearest(pattern, valid) if close or len(valid) <= MOST_LISTED else f" The first of {len(valid)}: {valid[0]}."


def _loaded(names: Iterable[str]) -> tuple[dict[str, Part], dict[str, str]]:
    """The parts, and of those that cannot be imported, why."""
    loaded, missing = {}, {}
    for name in names:
        try:
            loaded[name] = parts.load(name)
        except ImportError as error:  # what one part needs and this machine lacks is no reason to leave out the others
            missing[name] = str(error)
    return loaded, missing


def memory_share(names: Iterable[str], toy: bool) -> float:
    """What XLA's pool takes of a GPU for these parts.

    Raises:
      ConfigError: one that leaves room for others than JAX is asked for beside parts that need all there is.
    """
    names = list(names)
    sharing = [name for name in names if name in SHARED_MEMORY]
    if sharing and len(names) > 1 and not toy:
        raise ConfigError(f"--parts: {sharing[0]} leaves memory to others than JAX: measure it by itself")
    return SHARED_MEMORY[sharing[0]] if sharing else USUAL_SHARE


def _begun(asked: flags.FlagValues, words: Sequence[str], missing: Mapping[str, str]) -> Results:
    """The file, with a run begun in it: one that cannot be written is found out before anything is measured."""
    import jax

    from experiments.bench.h100_machine import checked_out, run_record

    path = Path(asked.out) if asked.out else None
    results = resumed(path) if path and asked.resume else Results(path)
    run = run_record(jax.devices()[0], words, asked.commit or checked_out(), asked.toy)
    results.begin(run | {"not_loaded": dict(missing)})
    print(f"{run['device']}{'' if run['absolute_times_count'] else f' ({CPU_NOTE})'}", flush=True)
    return results


def _measure(
    waiting: Todo, loaded: Mapping[str, Part], results: Results, asked: flags.FlagValues, begin_s: float
) -> int:
    """Measures what waits; says what had to be left, and why. Returns the exit code."""

    def in_time() -> bool:
        return asked.seconds is None or time.perf_counter() - begin_s < asked.seconds

    started, reason = measure_all(waiting, loaded, results, asked.toy, in_time)
    if not reason:
        return 0
    if left := ["/".join((name, case.name)) for name, case in waiting[started:]]:
        reason += f": {len(left)} cases are left, {left[0]} first"
    print(f"{reason}; with --resume the same command goes on", file=sys.stderr)
    return command.EXIT_FAILED


def _show(results: Results, missing: Mapping[str, str]) -> None:
    """Prints what the file holds by now, earlier runs included."""
    goals = goal_lines(results.parts) if results.runs[-1]["absolute_times_count"] else ()
    print("\n".join(("", *tables(results.parts), *goals)))
    for name, why in missing.items():
        print(f"{name}: cannot be loaded here: {why}")
    if results.path:
        print(f"-> {results.path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
