"""The report of a calibration: a page of Markdown and two pictures, from fits.

Points in the pictures are rows whose shapes were held out of the fit. Next: `experiments/calibrate.py`, which makes it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoserve.report import theme
from nanoserve.report.units import share, significant, time
from nanoserve.roofline.fit import Bucket, Fit
from nanoserve.roofline.fit_file import KINDS
from nanoserve.roofline.own_stack import OwnStack

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "matmul": "matrix product",
    "grouped_matmul": "routed experts",
    "attention_decode": "decode attention",
    "attention_prefill": "prefill attention",
    "all_reduce": "own all-reduce",
    "all_reduce_nccl": "NCCL all-reduce",
}
UNITS = {"overhead_s": (1e6, "us"), "bulk_overhead_s": (1e6, "us"), "item_s": (1e9, "ns"), "row_s": (1e9, "ns")}
UNITS |= dict.fromkeys(("call_s", "gap_s"), (1e6, "us"))
_COLUMNS, _PANEL_HEIGHT, _MOST_POINTS = 3, 0.62, 1500
_SHOWN_ERROR = 0.6

INTRODUCTION = """
# Constants fitted to measured operations

Made by

```
{command}
```

The rules are those of `nanoserve/roofline/timing.py`, and the fit differentiates that code: what is fitted here is what
prices a step. It minimises a robust mean of log(predicted / measured). {held_out}
"""
OF_TABLES = """A third of the shapes (matrix sizes, numbers of
heads) is held out by a hash of the shape, and every third size of a message; every error below is of held-out shapes,
as |predicted / measured - 1|. Nothing here was fitted to whole steps: how far those are off, validation.md says."""
OF_OURSELVES = """Every third product is held out,
in the order of FLOPs, and every third size of attention; every error below is of what was held out, as
|predicted / measured - 1|. Everything was measured by `experiments/bench/h100.py`, whole steps among it."""
PICTURES = """
![measured and predicted time of held-out shapes]({stem}_measured.png)

![relative error over size, of held-out shapes]({stem}_residuals.png)
"""
OWN_READING = """
## What the constants say

- **A product** takes its overhead and the longer of moving (`memory_share` of the bandwidth) and computing
  (`compute_share` of the peak). `bf16_int4` are products in bf16 with weights that are stored in int4.
- **Decode attention** takes its overhead, what its KV takes to read, and `item_s` for each sequence and KV head.
- **Prefill attention** adds up moving and computing: `overlap` 0.
- **Element-wise kernels** are what whole steps take beyond their host gap and the price of their other operations.
  **The host** is what a call, each of its steps and each row sampled in it let the chip wait.
"""
READING = """
## What the constants say

- **A product** takes its overhead and the longer of moving (`memory_share` of the bandwidth) and computing
  (`compute_share` of the peak). 8-bit products are preceded by a kernel that quantises their inputs (`quantise_share`),
  and compute tokens in tiles (`tile_tokens`; a quarter of it for few tokens): 257 tokens take as long as 512.
- **Decode attention** takes its overhead, what its KV takes to read, and `item_s` for each sequence and KV head.
- **Prefill attention** and **routed experts** add up moving and computing: `overlap` 0. No curve over prompt lengths is
  needed then.
- **All-reduce** takes the faster of an algorithm for short messages and one for long ones. Both tables are fitted at
  every size; vLLM calls its own kernels up to a size that depends on the number of GPUs (`longest_message_bytes` in the
  file: 256 KiB with 8) and NCCL above.

## What was left out

- Block-scaled fp8 products: timed with their launches from Python, 50 us and more each, which a captured step has not.
- Products outside the sizes of a model's layers, attention with windows or heads of other sizes than 128: read, drawn
  from no fit, and not counted in the errors.
- MLA: its tables time a module (projections, attention, and 70 us of launches) and not a kernel.
- Experts routed unevenly or divided over chips: constants are of the kernel; who has how much to do is for
  `nanoserve/roofline/moe.py` to say.
- Element-wise kernels and the host gap: no table has them. They are assumed, and the file of constants says so.
"""


def page(stem: str, fits: Sequence[Fit], command: str, own: OwnStack | None = None) -> str:
    """Returns the page.

    Args:
      stem: its file name without ending; the pictures' begin with it. fits: in the order of the page. command: made it.
      own: what was measured of our own stack, whole steps among it; None for tables of others.
    """
    held_out, reading = (OF_TABLES, READING) if own is None else (OF_OURSELVES, OWN_READING)
    parts = [
        INTRODUCTION.format(command=command, held_out=held_out) + "\n",
        "\n".join(_table(fits)) + "\n",
        PICTURES.format(stem=stem),
        *(() if own is None else ("\n## Whole steps\n\n" + "\n".join(_whole_steps(own)) + "\n",)),
        reading,
        "\n## Errors by size\n\n" + "\n".join(_bucket_table(fits)) + "\n",
        "\n## Rows\n\n" + "\n".join(f"- {_title(fit)}: {fit.group.rows}; {fit.domain}" for fit in fits) + "\n",
    ]
    return "".join(parts).lstrip()


def plots(path: Path, fits: Sequence[Fit]) -> list[Path]:
    """Draws the two pictures beside a page, and returns their names.

    Raises:
      OSError: one cannot be written.
    """
    shown = [fit for fit in fits if fit.group.kind in KINDS]
    rows = -(-len(shown) // _COLUMNS)
    drawn = {
        "measured": ("Predicted and measured time of shapes that no fit has seen", _measured_panel),
        "residuals": ("Error of the prediction by size, of shapes that no fit has seen", _residual_panel),
    }
    names = []
    for name, (title, panel) in drawn.items():
        names.append(path.with_name(f"{path.stem}_{name}.png"))
        theme.save(str(names[-1]), title, _grid(shown, rows, panel), height=_PANEL_HEIGHT * rows)
    return names


def _table(fits: Sequence[Fit]) -> Iterator[str]:
    yield "| operation | rows | held out | mean | median | p90 | constants |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for fit in fits:
        error, held = fit.test, int((fit.used & fit.held_out).sum())
        constants = ", ".join(_constant(name, value) for name, value in fit.constants.items())
        yield (
            f"| {_title(fit)} | {int(fit.used.sum()):,} | {held:,} | {error.mean_abs:.1%} | {error.p50:.1%} "
            f"| {error.p90:.1%} | {constants} |"
        )


def _whole_steps(own: OwnStack) -> Iterator[str]:
    if own.ceilings:
        best = ", ".join(f"{name} {share(fraction)}" for name, fraction in own.ceilings.items())
        yield f"Of the datasheet's figures, which the constants are shares of, the chip reached at best: {best}."
        yield ""
    if own.steps is None:
        yield "Too few were measured: element-wise kernels and the host keep the constants of another stack."
        return
    steps, off = own.steps, own.steps.test
    yield "| step | measured | predicted | error | |"
    yield "|---|---:|---:|---:|---|"
    for line in steps.lines:
        held_out = "held out" if line.held_out else ""
        yield f"| {line.name} | {time(line.measured_s)} | {time(line.predicted_s)} | {line.error:+.1%} | {held_out} |"
    yield ""
    constants = ", ".join(_constant(name, value) for name, value in (*steps.elementwise.items(), *steps.host.items()))
    yield f"Fitted to the others: {constants}."
    yield f"Those held out are {off.mean_abs:.1%} off on average, {off.p50:.1%} in the median."


def _bucket_table(fits: Sequence[Fit]) -> Iterator[str]:
    yield "| operation | size | rows | median | p90 | bias |"
    yield "|---|---|---:|---:|---:|---:|"
    for fit in fits:
        low = 0.0
        for bucket in fit.buckets:
            yield (
                f"| {_title(fit)} | {_range(bucket, low)} {fit.group.size_name} | {bucket.rows:,} "
                f"| {bucket.errors.p50:.1%} | {bucket.errors.p90:.1%} | {bucket.bias:+.1%} |"
            )
            low = bucket.below


def _range(bucket: Bucket, low: float) -> str:
    return f"{low:,.0f} and more" if np.isinf(bucket.below) else f"below {bucket.below:,.0f}"


def _title(fit: Fit) -> str:
    group = fit.group
    return f"{NAMES[group.kind]}, {group.variant}{' GPUs' if group.kind.startswith('all_reduce') else ''}"


def _constant(name: str, value: float) -> str:
    scale, unit = UNITS.get(name, (1, ""))
    return f"`{name}` {significant(value * scale)}{' ' * bool(unit)}{unit}"


def _grid(
    fits: Sequence[Fit], rows: int, panel: "Callable[[Axes, Fit, np.ndarray], None]"
) -> "Callable[[Figure], None]":
    def paint(figure: "Figure") -> None:
        axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axis, fit in zip(axes, fits, strict=False):
            panel(axis, fit, _sample(fit))
            axis.set_title(_title(fit), fontsize=8, loc="left")
            axis.tick_params(labelsize=7)
        for axis in axes[len(fits) :]:
            axis.remove()

    return paint


def _sample(fit: Fit) -> np.ndarray:
    """Held-out rows, at most so many, evenly over the table."""
    rows = np.flatnonzero(fit.used & fit.held_out)
    return rows[:: -(-len(rows) // _MOST_POINTS)]


def _points(axis: "Axes", x: np.ndarray, y: np.ndarray) -> None:
    axis.scatter(x, y, s=6 if len(x) < 100 else 2.5, color=theme.DAY["blue"], alpha=0.9 if len(x) < 100 else 0.35, lw=0)


def _measured_panel(axis: "Axes", fit: Fit, rows: np.ndarray) -> None:
    measured, predicted = fit.group.seconds[rows] * 1e6, fit.predicted[rows] * 1e6
    ends: Any = (min(measured.min(), predicted.min()) / 1.3, max(measured.max(), predicted.max()) * 1.3)
    axis.plot(ends, ends, color=theme.DAY["orange"], lw=0.9)
    _points(axis, measured, predicted)
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axis.set_xlabel("measured, us", fontsize=7)
    axis.set_ylabel("predicted, us", fontsize=7)


def _residual_panel(axis: "Axes", fit: Fit, rows: np.ndarray) -> None:
    error = np.clip(fit.ratio[rows] - 1, -_SHOWN_ERROR, _SHOWN_ERROR)
    axis.axhline(0, color=theme.DAY["orange"], lw=0.9)
    _points(axis, fit.group.size[rows], 100 * error)
    axis.set(xscale="log", ylim=(-105 * _SHOWN_ERROR, 105 * _SHOWN_ERROR))
    axis.set_xlabel(fit.group.size_name, fontsize=7)
    axis.set_ylabel("error, %", fontsize=7)
