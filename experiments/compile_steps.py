"""Compiles the steps that an H100 is judged by for one that is not there, and records what each launches.

    JAX_PLATFORMS=cpu python experiments/compile_steps.py --out=docs/h100_steps.json
    JAX_PLATFORMS=cpu python experiments/compile_steps.py --only='*b1*+whole_step' --out=some.json

The steps are cases of the benchmark's part `step`, compiled as they are shipped, and the smallest of them with each
candidate of its part `flags` as well: STEP+CANDIDATE. Needs the environment of `make aot-gpu`; ten minutes for all.
Nothing runs, so there are no times: what counts here are kernels, bytes, launches and waits.
`experiments/steps_page.py` makes docs/h100_steps.md of it.
"""

import dataclasses
import fnmatch
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.bench.parts.flags import CANDIDATES, SHIPPED
from experiments.bench.parts.step_cases import EIGHT, PAGE_TOKENS, SEVENTY, StepCase, decode, prefill
from experiments.compile import ENVIRONMENT
from nanoserve.report.progress import Progress
from nanoserve.specs.errors import ConfigError

LOOP_STEPS = 32
SMALLEST = decode(EIGHT, 1, 1024)
STEPS = (SMALLEST, decode(EIGHT, 32, 4096), decode(SEVENTY, 1, 1024, "int4"), prefill(EIGHT, 2048))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """A program to compile: an entry point for a step, with the options of a candidate."""

    step: StepCase
    program: str
    candidate: str = SHIPPED

    @property
    def name(self) -> str:
        """What `--only` selects."""
        return f"{self.step.name}+{self.candidate}"


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def programs() -> Iterator[Wanted]:
    """Every program: a decode step by itself and in a loop."""
    for step in STEPS:
        for name in ("prefill_step",) if step.kind == "prefill" else ("decode_step", "decode_loop"):
            yield Wanted(step=step, program=name)
    for candidate in CANDIDATES:
        if candidate != SHIPPED:
            yield Wanted(step=SMALLEST, program="decode_step", candidate=candidate)
            yield Wanted(step=SMALLEST, program="decode_loop", candidate=candidate)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("out", None, "JSON file to write", flag_values=own)
    flags.DEFINE_list("only", ["*"], "STEP+CANDIDATE, with '*'", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    if not asked.out:
        raise ConfigError("--out: name a file for the figures")
    wanted = [each for each in programs() if any(fnmatch.fnmatch(each.name, pattern) for pattern in asked.only)]
    if not wanted:
        names = ", ".join(dict.fromkeys(each.name for each in programs()))
        raise ConfigError(f"--only={','.join(asked.only)} names none of {names}")
    os.environ.update(ENVIRONMENT)
    found = []
    with Progress(len(wanted), "programs") as progress:
        for number, each in enumerate(wanted, start=1):
            found.append(figures(each))
            progress.update(number)
    command.write_json("--out", Path(asked.out), {"versions": _versions(), "loop_steps": LOOP_STEPS, "programs": found})
    return 0


def figures(wanted: Wanted) -> dict[str, Any]:
    """What the compiler makes of a program, as plain numbers."""
    from nanoserve.executors.aot import Compiler, Workload
    from nanoserve.executors.aot_expected import Setting
    from nanoserve.executors.aot_kernels import launched
    from nanoserve.executors.aot_report import describe
    from nanoserve.specs.chip_registry import chip
    from nanoserve.specs.chips import ClusterSpec

    step = wanted.step
    work = Workload(
        batch=step.rows,
        context_tokens=step.context_tokens,
        chunk_tokens=step.new_tokens,
        page_tokens=PAGE_TOKENS,
        slots=step.rows,
        loop_steps=LOOP_STEPS,
    )
    cluster = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 1})
    facts: dict[str, Any] = {"cluster": cluster, "precision": step.precision, "work": work}
    compiler = Compiler(step.spec, **facts, attention="auto", options=CANDIDATES[wanted.candidate])
    setting = Setting(model=step.spec, **facts, attention=compiler.attention.name)
    compiled = getattr(compiler, wanted.program)()
    report, kernels = describe(compiled, setting), launched(compiled, setting)
    listed = dataclasses.asdict(kernels)
    if wanted.candidate != SHIPPED:
        del listed["kernels"]  # some hundreds, where layers are unrolled
    return {
        "step": step.name,
        "candidate": wanted.candidate,
        "options": dict(CANDIDATES[wanted.candidate]),
        **listed,
        "of_a_layer": kernels.of_a_layer,
        "outside": kernels.outside,
        "weight_bytes": compiled.weight_bytes,
        "temp_bytes": compiled.memory["temp"],
        "layer_copies": len(report.copies),
    }


def _versions() -> dict[str, str]:
    import importlib.metadata as metadata

    return {name: metadata.version(name) for name in ("jax", "jaxlib", "jax-cuda13-plugin")}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
