"""Writes docs/parallelism.md: how a model is shared by chips, what of it is executed, and what the compilers say.

    python experiments/parallelism_page.py            write the page
    python experiments/parallelism_page.py --check    say whether it is what the figures give

What is compiled comes from docs/parallelism/*.json, made by the commands in `COMPILED`; the rest is computed here.
"""

import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import command
from experiments.parallelism_text import COMPARED, DIFFERENCES, INTRODUCTION, PROCESSES
from nanoserve.executors.aot import Workload
from nanoserve.executors.aot_expected import Setting, roofline_parts, step_counts
from nanoserve.executors.choose import mesh_obstacle
from nanoserve.report.units import short, time
from nanoserve.roofline.memory import memory_plan
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER, PAGE = REPOSITORY / "docs" / "parallelism", REPOSITORY / "docs" / "parallelism.md"
GIB = 2**30
STAGES = "--set=\"Cluster.mesh={'pipeline': 2, 'tensor': 4}\" --set=Engine.prefill_chunk_tokens=1024"
COMPILED: Mapping[str, tuple[str, str, str]] = {
    "mixtral_v5p": ("Mixtral 8x7B", "8 x v5p: expert 8", "--config=mixtral_v5p"),
    "mixtral_v6e": (
        "Mixtral 8x7B",
        "8 x v6e: expert 8",
        "--config=mixtral_v5p --set=Cluster.chip=tpu_v6e --set=Engine.page_tokens=128",
    ),
    "mixtral_h100": (
        "Mixtral 8x7B",
        "8 x H100: expert 8",
        "--config=mixtral_v5p --set=Cluster.chip=h100_sxm --set=Engine.page_tokens=64",
    ),
    "stages_v5p": ("Llama 3.1 70B", "8 x v5p: pipeline 2, tensor 4", f"--config=llama70b_v5p {STAGES}"),
    "stages_v6e": (
        "Llama 3.1 70B",
        "8 x v6e: pipeline 2, tensor 4",
        f"--config=llama70b_v6e {STAGES} --set=Engine.page_tokens=128",
    ),
    "stages_h100": (
        "Llama 3.1 70B",
        "8 x H100: pipeline 2, tensor 4",
        f"--config=llama70b_h100 {STAGES} --set=Engine.page_tokens=64",
    ),
}
PRICED: Sequence[tuple[str, str, Mapping[str, int], str]] = [
    ("mixtral-8x7b", "tpu_v5p", {"tensor": 8}, "sequences"),
    ("mixtral-8x7b", "tpu_v5p", {"expert": 4, "tensor": 2}, "heads"),
    ("mixtral-8x7b", "tpu_v5p", {"expert": 8}, "heads"),
    ("mixtral-8x7b", "tpu_v5p", {"expert": 8}, "sequences"),
    ("llama-3.1-70b", "h100_sxm", {"tensor": 8}, "sequences"),
    ("llama-3.1-70b", "h100_sxm", {"pipeline": 2, "tensor": 4}, "sequences"),
    ("llama-3.1-70b", "h100_sxm", {"pipeline": 4, "tensor": 2}, "sequences"),
]
WORK = Workload(batch=32, context_tokens=2048, chunk_tokens=1024, page_tokens=16, slots=32)
DEVICES = 8
NOTABLE_SHARE = 0.001  # of the bytes that a step's collectives move


def main(arguments: Sequence[str]) -> int:
    """Writes or checks the page; returns the exit code."""
    return command.page(arguments, __doc__, PAGE, page)


def page() -> str:
    """The page, from the figures."""
    figures = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in COMPILED}
    parts = [INTRODUCTION, *_smollm2(), COMPARED, *_priced(), DIFFERENCES, *_compiled(figures), PROCESSES]
    parts = [f"\n{part.strip()}" if "## " in part else part.strip("\n") for part in parts]
    return "\n".join(parts).strip() + "\n"


def _smollm2() -> Iterator[str]:
    """What becomes of each mesh of eight devices or fewer."""
    spec, executed, refused = model("smollm2-135m"), [], {}
    for pipeline, tensor in itertools.product(range(1, DEVICES + 1), repeat=2):
        axes = {axis: size for axis, size in (("pipeline", pipeline), ("tensor", tensor)) if size > 1}
        if pipeline * tensor <= DEVICES and axes:
            why = mesh_obstacle(spec, ClusterSpec(chip=chip("cpu_2core"), mesh=axes))
            executed += [] if why else [axes]
            if why and len(axes) == 1:
                refused[_named(axes)] = why.removeprefix(f"model '{spec.name}': ")
    most = max(math.prod(axes.values()) for axes in executed)
    widest = [_named(axes) for axes in executed if math.prod(axes.values()) == most]
    yield f"""
## SmolLM2 on eight devices

It has {spec.heads} query heads, {spec.kv_heads} KV heads and {spec.layers} layers, which no eight devices share.
Executed are {", ".join(map(_named, executed))}.
At most {most} devices share it ({" or ".join(widest)}); four replicas (`data`) of two stages use all eight.
A mesh of one axis that it does not fit is refused in these words:
"""
    yield from _heading("mesh", "why not")
    yield from (_row(mesh, why) for mesh, why in refused.items())


def _priced() -> Iterator[str]:
    """Prices of one step on each mesh."""
    yield f"""
## What the layouts cost

At datasheet limits: a decode step of {WORK.batch} sequences of {WORK.context_tokens:,} positions, and a prompt's chunk
of {WORK.chunk_tokens:,}. Weights and pages are of one chip; KV is what the replica holds with 90% of its memory.
"""
    yield from _heading("model", "chips", "mesh", "weights, GiB", "KV, M tokens", "decode", "chunk", "executed")
    for name, kind, axes, divides in PRICED:
        spec, precision = model(name), Precision()
        cluster = ClusterSpec(chip=chip(kind), mesh=axes, expert_divides=divides)  # pyright: ignore[reportArgumentType]
        setting = Setting(model=spec, cluster=cluster, precision=precision, work=WORK, attention="auto")
        steps = (step_counts(setting, program) for program in ("decode_step", "prefill_step"))
        plan = memory_plan(spec, cluster, precision, page_tokens=WORK.page_tokens)
        yield _row(
            spec.name,
            f"{cluster.count} x {kind}",
            _named(axes) + (f", dividing {divides}" if "expert" in axes else ""),
            f"{plan.weight_bytes / GIB:.2f}",
            f"{plan.num_pages * WORK.page_tokens / 1e6:.2f}",
            *(time(sum(roofline_parts(setting, counts).values())) for counts in steps),
            "no" if mesh_obstacle(spec, cluster) else "yes",
        )


def _compiled(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What the vendors' compilers made of whole steps."""
    commands = "\n".join(
        f"python experiments/compile.py {flags} --out=docs/parallelism/{name}.json"
        for name, (_, _, flags) in COMPILED.items()
    )
    yield f"""
## What was compiled

All layers, for chips that were not there, in the environments of `make aot-tpu` and `make aot-gpu`; figures are of one
chip and one call, with {WORK.batch} sequences of {WORK.context_tokens:,} positions. Made by

```
{commands}
```
"""
    columns = "resident, GiB", "off the memory model", "temporary, GiB", "collectives", "copies of a layer"
    yield from _heading("model", "mesh", "step", *columns)
    for name, (spec, mesh, _) in COMPILED.items():
        for program in figures[name]["programs"]:
            yield _row(spec, mesh, program["name"], *_cells(program))


def _cells(program: Mapping[str, Any]) -> Iterator[str]:
    memory = program["memory"]
    if memory is None:
        raise ConfigError(f"{program['name']} was refused: {program['refused']}")
    resident = memory["weights"] + memory["kv"] + memory["rest"]
    yield f"{resident / GIB:.3f}"
    yield f"{resident / (memory['model_weights'] + memory['model_kv']) - 1:+.2%}"
    yield f"{memory['temp'] / GIB:.3f}"
    moved = sum(each["times"] * each["size_bytes"] for each in program["collectives"])
    notable = [each for each in program["collectives"] if each["times"] * each["size_bytes"] > NOTABLE_SHARE * moved]
    yield ", ".join(f"{each['times']:,.0f} {each['kind']} of {short(each['size_bytes'])}B" for each in notable)
    yield ", ".join(each["shapes"][0] for each in program["copies"]) or "none"


def _named(axes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in axes.items())


def _heading(*columns: str) -> Iterator[str]:
    yield ""
    yield _row(*columns)
    yield _row(*(["---"] * len(columns)))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
