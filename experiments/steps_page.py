"""Writes docs/h100_steps.md: what the steps that an H100 is judged by compile to, from the figures beside it.

    python experiments/steps_page.py            write the page
    python experiments/steps_page.py --check    say whether it is what the figures give

The figures are made by `experiments/compile_steps.py --out=docs/h100_steps.json`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import command
from experiments.bench.parts.flags import SHIPPED
from nanoserve.report.units import significant

FOLDER = Path(__file__).resolve().parents[1] / "docs"
FIGURES, PAGE = FOLDER / "h100_steps.json", FOLDER / "h100_steps.md"
MB = 1e6
LISTED = (("8b_decode_b1_s1024", "decode_step"), ("70b_int4_decode_b1_s1024", "decode_step"))
Program = Mapping[str, Any]

INTRODUCTION = """
# What the steps of an H100 compile to

Whole steps, all layers, through XLA's compiler for an H100 on a machine that has none. **Nothing here was run or
timed.** What is counted are kernels, bytes, and what the host does; times are `experiments/bench/h100.py`'s to measure.
Made by

```
JAX_PLATFORMS=cpu python experiments/compile_steps.py --out=docs/h100_steps.json
```

in the environment of `make aot-gpu`, with jax {jax}. `experiments/compile.py --kernels` prints the same for any config.

Every kernel takes some time to start, whatever it does, and at batch 1 a layer has little to do. What the host launches
is another matter: a command buffer (CUDA graph) is one launch, whatever it holds. A wait is the host asking the device
whether to go on, with the device idle until the answer is acted upon.

## What a step is made of

Of one step; a `decode_loop` has {loop_steps}. "Beside" is what is moved beside what products and attention read.
Without the versions of driver and runtime in the description of the chip (`kernels/pallas/gpu_target.py`), the compiler
leaves library calls out of command buffers, and what it makes is not what a device gets.
"""
DONE = """
What would be in the way, and is not there:

- **A lone row's product with a float32 result** makes XLA write the whole matrix out as float32 and read it again: at
  batch 1 `wqkv` in every layer and the head once; in a prefill the head. So queries, keys and values are products with
  a bf16 result where there is no bias (the same bits: they were rounded at once), and a lone row of the head is
  multiplied as one of a tile of eight (`kernels/pallas/einsum.py`).
- **The condition around sampling** makes the host wait in every step. Whether any request draws is known before
  anything is compiled, so a run of greedy requests gets a program without it (`model/sampling.py`, `sampler_for`).
- **Joining many splits of attention** takes more kernels than joining few, which fuse with what is around them: at
  batch 1 a row is cut into few parts (`kernels/pallas/paged_attention/gpu.py`).
- **Writing a lone token's KV** becomes a slice that is read, a choice and an update. With a second token beside it that
  goes nowhere it stays a scatter: one kernel.
- **Searches by halves** for each token's row are loops before a prefill's first layer, a launch for each line of their
  bodies. Comparing with every boundary is one kernel.
- **A barrier** between a quantised product and its activation keeps the sum of its splits a kernel of its own.

What is left, and why:

- A **norm** is two kernels at batch 1 (a sum, and what is done with it), one from 2 rows on. Then its weights are
  copied out of their stack first, on a second branch of the graph.
- The layer's **first page** and the **count of layers** are kernels of one number. They wait for nothing that the
  others do not wait for, so a graph runs them beside others. Carried through the loop instead, XLA makes the same of
  them.
- At 2 to 7 rows cuBLAS wants a multiple of 8 rows, and XLA pads activations by kernels of their own. Whether a lone row
  is better padded to 8 from the start is a case of the part `flags` (`eight_rows`).
"""
CANDIDATES = """
## What flags change

The smallest step, compiled with each candidate of the benchmark's part `flags`, as the host sees it: of a step by
itself, and of one of a loop of {loop_steps}. XLA's default makes a command buffer of a layer, which is updated and
launched for each of them. With loops in command buffers and layers unrolled there is one for a whole step, or for all
steps of a loop, in which the device decides whether to go on: no wait is left. Which of them is fastest only a device
can say; none is shipped before.
"""


def main(arguments: list[str]) -> int:
    """Writes or checks the page; returns the exit code."""
    return command.page(arguments, __doc__, PAGE, page)


def page() -> str:
    """The page, from the figures."""
    now = json.loads(FIGURES.read_text())
    words = {"jax": now["versions"]["jax"], "loop_steps": now["loop_steps"]}
    shipped = [program for program in now["programs"] if program["candidate"] == SHIPPED]
    return "\n".join(
        [
            INTRODUCTION.format(**words).strip(),
            "",
            *_made_of(shipped),
            DONE.rstrip(),
            *(line for program in shipped if _key(program)[:2] in LISTED for line in _layer(program)),
            CANDIDATES.format(**words).rstrip(),
            "",
            *_candidates(now["programs"]),
            "",
        ]
    )


def _key(program: Program) -> tuple[str, str, str]:
    return program["step"], program["program"], program["candidate"]


def _made_of(shipped: list[Program]) -> Iterator[str]:
    headings = ("kernels of a layer", "others", "beside, MB", "temporary, MB", "launches", "waits")
    yield _row("step", "program", *headings)
    yield _row(*["---"] * 2, *["---:"] * len(headings))
    for program in shipped:
        yield _row(*_key(program)[:2], *_counts(program))


def _counts(program: Program) -> Iterator[str]:
    yield significant(program["of_a_layer"])
    yield significant(program["outside"])
    yield f"{program['extra_bytes'] / MB:,.0f}"
    yield f"{program['temp_bytes'] / MB:,.0f}"
    yield significant(program["host"]["launches"] / program["steps"])
    yield significant(program["host"]["waits"] / program["steps"])


def _layer(program: Program) -> Iterator[str]:
    yield f"\n## A layer of {program['step']}\n"
    yield _row("operation", "kind", "MB", "instruction")
    yield _row("---", "---", "---:", "---")
    for each in program["kernels"]:
        if each["in_layers"]:
            yield _row(each["operation"], each["kind"], f"{each['moved_bytes'] / MB:,.3f}", f"`{each['name']}`")


def _candidates(programs: list[Program]) -> Iterator[str]:
    by_key = {_key(program): program for program in programs}
    smallest = programs[0]["step"]
    names = dict.fromkeys(program["candidate"] for program in programs if program["step"] == smallest)
    yield _row("candidate", "kernels", "beside, MB", "launches", "waits", "in a loop: launches", "waits")
    yield _row("---", *["---:"] * 6)
    for name in names:
        step, loop = (by_key[smallest, program, name] for program in ("decode_step", "decode_loop"))
        kernels = step["of_a_layer"] * step["layers"] + step["outside"]
        host = [(each["host"][what], each["steps"]) for each in (step, loop) for what in ("launches", "waits")]
        cells = (significant(number / steps) for number, steps in host)
        yield _row(f"`{name}`", significant(kernels), f"{step['extra_bytes'] / MB:,.0f}", *cells)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
