"""Writes docs/compile.md: what the vendors' compilers say of the shipped configs, from the figures committed beside it.

    python experiments/compiled_page.py            write the page
    python experiments/compiled_page.py --check    say whether it is what the figures give

The figures are made by `experiments/compile.py --config=NAME --out=docs/compiled/NAME.json`, its `--oom_surface`, and
`experiments/bench/tpu_products.py`; the page names the command of each.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import command
from nanoserve.report.units import short, significant, time

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER, PAGE = REPOSITORY / "docs" / "compiled", REPOSITORY / "docs" / "compile.md"
PRODUCTS = REPOSITORY / "experiments" / "bench" / "results" / "tpu_products.json"
CONFIGS = ("llama70b_v5p", "llama70b_v6e", "llama70b_h100")
SURFACES = {"v6e-8": "Llama-3.1-70B on 8 v6e", "v5e-16": "Llama-3.1-70B on 16 v5e"}
GIB = 2**30

INTRODUCTION = """
# What the compilers say

Whole steps of Llama-3.1-70B, all 80 layers, cut over the config's chips and compiled by the vendor's compiler on a
machine that has none of them. Nothing here was run or timed: it is what a compiler answers. Made by

```
{commands}
```

in the environments of `make aot-tpu` and `make aot-gpu`. 32 sequences of 2,048 positions; all figures are of one chip
and one call.
"""
PRODUCTS_TEXT = """
They are matrix products. XLA's estimates of the same products by themselves, of 32 tokens and with the matrices in HBM
(`python experiments/bench/tpu_products.py`):
"""
PRODUCTS_SO = """
In the step they are estimated at less than that, so no arrangement of the step is in the way. Whether a chip takes as
long, only a chip can say.
"""
SURFACES_TEXT = """
Found with `--oom_surface`: the compiler is asked about one batch after the other until the boundary is known within 2%.
The model gives a chip all of its memory; the compiler keeps some of it, in its own words:
"""
TRIED = """
## What was tried, and what the compilers answered

- **Layers** are stacked and scanned: unrolled, a program and its compile time grow with depth. A layer's pages are
  reached by their first page in one run of all layers' pages, so that no pool is sliced.
- **Matrices of three axes** (`[D, K, G + 2, h]`, `[K, G, h, D]`, `[2, D, F]`) made XLA for TPU copy a layer's slice,
  and XLA for GPUs transpose it. All matrices now have two.
- **Gate and up in one matrix** `[D, 2 F]`, and queries, keys and values with a bf16 result, were transposed for TPU in
  every layer, until the product's result was pinned row-major.
- **The activation**, fused into the down projection, was computed again for every block of it: it is kept apart.
- **XLA's scatter** of new keys and values picks a memory order of its own where a page has several heads, and copied
  the pool in every layer on TPU: there a Pallas kernel writes each token to its page.
- **The work list** of attention, left inside the scan, was made again in every layer.
- **Triton products** on the H100 want a matrix by itself, and copied each layer's out of the stack: cuBLAS takes an
  address inside it (`xla_gpu_enable_triton_gemm=false`).
"""

Figures = Mapping[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Writes or checks the page; returns the exit code."""
    return command.page(arguments, __doc__, PAGE, page)


def page() -> str:
    """The page, from the figures."""
    configs = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in CONFIGS}
    surfaces = {name: json.loads((FOLDER / f"fits_{name}.json").read_text()) for name in SURFACES}
    return "\n".join(
        [
            *_introduction(),
            *_memory(configs),
            *_decode(configs),
            *_products(json.loads(PRODUCTS.read_text())),
            *_surfaces(surfaces),
            TRIED,
        ]
    )


def _introduction() -> Iterator[str]:
    commands = (f"python experiments/compile.py --config={name} --out=docs/compiled/{name}.json" for name in CONFIGS)
    yield INTRODUCTION.format(commands="\n".join(commands)).strip()


def _memory(configs: Mapping[str, Figures]) -> Iterator[str]:
    yield from _heading(
        "Memory and work", "config", "step", "resident, GiB", "model", "temporary, GiB", "FLOPs", "cost model"
    )
    for name, program in _programs(configs):
        memory = program["memory"]
        resident = memory["weights"] + memory["kv"] + memory["rest"]
        expected = memory["model_weights"] + memory["model_kv"]
        flops, model = program["product_flops"], program["model_flops"]
        yield _row(
            name,
            program["name"],
            f"{resident / GIB:.3f}",
            f"{resident / expected - 1:+.2%}",
            f"{memory['temp'] / GIB:.3f}",
            short(flops),
            f"{flops / model - 1:+.2%}",
        )
    yield ""
    copies = [f"{name} {program['name']}" for name, program in _programs(configs) if program["copies"]]
    yield (
        f"Copies of a layer's weights or KV: {', '.join(copies) if copies else 'none in any of these programs'}. "
        "Mosaic kernels for the H100: "
        + "; ".join(
            f"{program['name']} {kernels['registers']} registers, {kernels['spill_bytes']} bytes of spills, "
            f"{kernels['shared_bytes']:,} bytes of shared memory"
            for _, program in _programs(configs)
            if (kernels := program.get("kernels"))
        )
        + "."
    )


def _decode(configs: Mapping[str, Figures]) -> Iterator[str]:
    yield from _heading(
        "The decode step, by XLA's estimate for a TPU",
        "config",
        "estimate",
        "roofline of the same",
        "times",
        "roofline of the rest",
    )
    steps = [(name, program) for name, program in _programs(configs) if program["name"] == "decode_step"]
    steps = [(name, program) for name, program in steps if program["estimated_s"]]
    for name, step in steps:
        estimable = step["roofline_s"] - step["unestimated_s"]
        times = significant(step["estimated_s"] / estimable)
        yield _row(name, time(step["estimated_s"]), time(estimable), times, time(step["unestimated_s"]))
    yield ""
    yield (
        "XLA estimates neither collectives nor Pallas kernels: they are the rest. Instructions of more than 2% of the "
        "estimate that take more than 1.5 times their own roofline (their bytes and products at the chip's limits):"
    )
    yield from _heading("", "config", "operation", "runs", "estimate", "over its roofline")
    for name, step in steps:
        for each in step["above"]:
            operation = "/".join(each["scope"].split("/")[-3:])
            over = significant(each["estimated_s"] / each["roofline_s"])
            yield _row(name, f"`{operation}`", f"{each['times']:.0f}", time(each["estimated_s"]), over)
        if not step["above"]:
            yield _row(name, "none", "", "", "")


def _products(figures: Figures) -> Iterator[str]:
    yield ""
    yield PRODUCTS_TEXT.strip()
    matrices = list(dict.fromkeys(each["matrix"] for each in figures["products"]))
    yield from _heading("", "chip", *(f"{name}, over its roofline" for name in matrices))
    for chip in dict.fromkeys(each["chip"] for each in figures["products"]):
        own = {each["matrix"]: each for each in figures["products"] if each["chip"] == chip}
        yield _row(chip, *(significant(own[name]["cycles"] / own[name]["roofline_cycles"]) for name in matrices))
    yield ""
    yield PRODUCTS_SO.strip()


def _surfaces(surfaces: Mapping[str, Figures]) -> Iterator[str]:
    yield from _heading("What fits", "chips", "context", "sequences that XLA accepts", "memory model", "off")
    for name, what in SURFACES.items():
        for each in surfaces[name]["boundaries"]:
            off = f"{each['compiler'] / each['model'] - 1:+.1%}" if each["model"] else ""
            yield _row(what, f"{each['context_tokens']:,}", f"{each['compiler']:,}", f"{each['model']:,}", off)
    yield ""
    for name, what in SURFACES.items():
        yield f"![Sequences that fit on {what}, by context](compiled/fits_{name}.png)"
        yield ""
    yield SURFACES_TEXT.strip()
    yield ""
    yield "```"
    yield from (surfaces[name]["boundaries"][0]["refusal"].splitlines()[0] for name in SURFACES)
    yield "```"


def _programs(configs: Mapping[str, Figures]) -> Iterator[tuple[str, Figures]]:
    for name, figures in configs.items():
        for program in figures["programs"]:
            yield name, program


def _heading(title: str, *columns: str) -> Iterator[str]:
    yield ""
    if title:
        yield f"## {title}"
        yield ""
    yield _row(*columns)
    yield _row(*(["---"] * len(columns)))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
