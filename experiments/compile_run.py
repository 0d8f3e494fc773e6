"""Compiles, for chips that are not there, every program that an executed run of a config would compile first.

    python experiments/compile_run.py --config=llama70b_int4_h100x1
    python experiments/compile_run.py --config=llama70b_int4_h100x1 --largest --out=compiled.json

Ladders, page tables and the page pool are those of the run, made from the config's trace. Needs the compilers that
`experiments/compile.py` needs. Prints of each program the bytes of one chip and how long lowering and compiling took
here; and whether XLA computes parts of it twice, which it does where weights and pages leave it less memory than it
schedules with (on a GPU a fifth of the chip). `--largest` compiles the largest program of each kind only.

Exit code 0: everything compiled and fits the chip. 1: a program does not, or is computed in part twice. 2: something
the user can mend.
"""

import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.compile import ENVIRONMENT, GIB, REPOSITORY
from nanoserve.experiment import CONFIG_CLASSES, Experiment, resolve
from nanoserve.report.units import time
from nanoserve.specs.config import load
from nanoserve.specs.config import resolve as resolve_config
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from nanoserve.executors.aot import Compiled, Compiler
    from nanoserve.executors.arrays import Ladders

REMATERIALISED = ".remat"  # in the name of an instruction that XLA computes once more to save memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one program.

    Attributes:
      name: as a run's warm-up calls it. refused: the compiler's message, or empty.
      argument_bytes, temp_bytes: of one chip; weights, pages and state, and what the program needs besides.
      rematerialised: instructions that are computed twice. lower_s, compile_s: how long it took on this machine.
    """

    name: str
    refused: str
    argument_bytes: int
    temp_bytes: int
    rematerialised: int
    lower_s: float
    compile_s: float


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(arguments, __doc__, _flags, functools.partial(_command, ["python", *arguments]))


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("config", "llama70b_int4_h100x1", "name in configs/, or path of a gin file", flag_values=own)
    flags.DEFINE_multi_string("set", [], "Class.field=value, repeatable; wins over the file", flag_values=own)
    flags.DEFINE_bool("largest", False, "only the largest program of each kind", flag_values=own)
    flags.DEFINE_string("out", None, "also write the figures to this JSON file", flag_values=own)


def _command(line: Sequence[str], asked: flags.FlagValues) -> int:
    config = resolve_config(asked.config, REPOSITORY / "configs")
    experiment = load(config, CONFIG_CLASSES, "Experiment", asked.set).value
    resolve(experiment)  # misspelt models and chips are reported before anything heavy is imported
    os.environ.update(ENVIRONMENT)
    compiler, ladders, described = of_run(experiment)
    if asked.largest:
        ladders = largest(ladders)
    print(f"{described}; {ladders.programs} programs", flush=True)
    found = []
    for each in outcomes(compiler, ladders):
        found.append(each)
        print(line_of(each), flush=True)
    limit = resolve(experiment).cluster.chip.hbm_bytes
    if asked.out:
        report = {"command": shlex.join(line), "described": described, "chip_bytes": limit}
        command.write_json(
            "--out", Path(asked.out), report | {"programs": [dataclasses.asdict(each) for each in found]}
        )
    sound = all(not each.refused and not each.rematerialised and _bytes(each) <= limit for each in found)
    return 0 if sound else command.EXIT_FAILED


def of_run(experiment: Experiment) -> tuple["Compiler", "Ladders", str]:
    """What compiles an experiment's programs, their ladders, and a line that says for what.

    Raises:
      ConfigError: its engines have several pools, or its steps are not those of one ladder. CapacityError: no room.
    """
    from nanoserve.building import context_tokens, pools_of
    from nanoserve.executors.aot import Compiler, Workload
    from nanoserve.executors.jax_build import ladders_for
    from nanoserve.model.sampling import sampler_for
    from nanoserve.trace.source import open_trace

    engine, facts = experiment.engine, resolve(experiment)
    if facts.decode is not None or engine.draft != "none" or engine.batch_invariant:
        raise ConfigError(
            f"{experiment.name}: only one pool's prefill, decode and mixed steps are compiled here. Leave out "
            "Disaggregation, Engine.draft and Engine.batch_invariant"
        )
    (pool,) = pools_of(experiment, facts)
    trace = open_trace(experiment.trace, None)
    ladders = ladders_for(trace, engine, min(context_tokens(engine, pool.model), pool.pages * engine.page_tokens))
    work = Workload(
        batch=max(ladders.decode_rows[-1], ladders.prefill_rows),
        context_tokens=ladders.table_pages * engine.page_tokens,
        chunk_tokens=ladders.prefill_tokens[-1],
        page_tokens=engine.page_tokens,
        slots=engine.max_seqs,
        loop_steps=ladders.loop_steps,
        pool_pages=pool.pages,
    )
    sampler = sampler_for(experiment.sampling.temperature)
    compiler = Compiler(pool.model, pool.cluster, pool.precision, work, experiment.attention, sampler)
    cluster = pool.cluster
    return (
        compiler,
        ladders,
        (
            f"{pool.model.name} in {pool.precision.weights} for {cluster.count} x {cluster.chip.name}, attention "
            f"{compiler.attention.name}, {pool.described}"
        ),
    )


def largest(ladders: "Ladders") -> "Ladders":
    """The top rung of every ladder."""
    return dataclasses.replace(
        ladders, decode_rows=ladders.decode_rows[-1:], prefill_tokens=ladders.prefill_tokens[-1:]
    )


def outcomes(compiler: "Compiler", ladders: "Ladders") -> Iterator[Outcome]:
    """Compiles the programs one after the other."""
    from nanoserve.executors.aot_ladders import every_program

    for program in every_program(compiler, ladders):
        yield _outcome(program)


def _outcome(program: "Compiled") -> Outcome:
    memory = program.memory
    return Outcome(
        name=program.name,
        refused=program.refused,
        argument_bytes=memory.get("argument", 0),
        temp_bytes=memory.get("temp", 0),
        rematerialised=program.text.count(REMATERIALISED),
        lower_s=program.lower_s,
        compile_s=program.compile_s,
    )


def line_of(each: Outcome) -> str:
    """What a person reads of one program."""
    took = f"lowered in {time(each.lower_s)}, compiled in {time(each.compile_s)}"
    if each.refused:
        return f"{each.name:<20} DOES NOT FIT ({took}): {each.refused.splitlines()[0]}"
    twice = f"; {each.rematerialised} instructions are computed twice to save memory" if each.rematerialised else ""
    resident, temp = each.argument_bytes / GIB, each.temp_bytes / GIB
    return f"{each.name:<20} {resident:>8.2f} GiB resident, {temp:>6.3f} GiB temporary{twice} ({took})"


def _bytes(each: Outcome) -> int:
    return each.argument_bytes + each.temp_bytes


if __name__ == "__main__":
    sys.exit(main(sys.argv))
