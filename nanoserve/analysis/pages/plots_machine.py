"""Drawings of how a service uses its machines: `analysis.usage`."""

from typing import TYPE_CHECKING

import numpy as np

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.pages import painting
from nanoserve.analysis.pages.drawing import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = (("bandwidth", "blue"), ("compute", "orange"))


def machine_by_hour(finding: Finding, figure: "Figure") -> None:
    """Mean shares of compute and bandwidth by hour of the day, their p95 above."""
    axes, series = figure.add_subplot(), finding.series
    for name, color in _KINDS:
        painting.line(axes, series["hour"], series[name], color, name)
        painting.band(axes, series["hour"], series[name], series[f"{name}_p95"], color)
    painting.hours_of_day(axes)
    painting.shares(axes, "share of the chip in use")
    axes.legend(loc="upper left", ncols=2)
    axes.set_ylim(top=min(1.0, 1.25 * max(float(np.max(series[f"{name}_p95"])) for name, _ in _KINDS)))


def machine_by_load(finding: Finding, figure: "Figure") -> None:
    """The same against load."""
    axes, series = figure.add_subplot(), finding.series
    for name, color in _KINDS:
        painting.line(axes, series["load"], series[name], color, name, dots=True)
    painting.shares(axes, "share of the chip in use")
    unit = str(finding.values.get("load_unit", "requests"))
    axes.set(xlabel=f"load ({_plural(unit)})", xlim=(0, None), ylim=(0, 1.25 * axes.get_ylim()[1]))
    axes.legend(loc="upper left", ncols=2)


def _plural(unit: str) -> str:
    first, *rest = unit.split(" ", 1)
    return " ".join([f"{first}s", *rest])


def kv_blocks(finding: Finding, figure: "Figure") -> None:
    """Blocks held, those of them with tokens, and what one request could still be given."""
    held, free = figure.subplots(2, 1, sharex=True)
    series = finding.series
    painting.area(held, series["time_s"], series["held"], "blue", "held")
    painting.area(held, series["time_s"], series["written"], "teal", "with tokens")
    painting.numbers(held, "KV blocks")
    painting.area(free, series["time_s"], series["free"], "grey", "free")
    if np.isfinite(series["largest_run"]).any():
        painting.area(free, series["time_s"], series["largest_run"], "orange", "in the longest free run")
    painting.numbers(free, "KV blocks")
    for axes in (held, free):
        axes.set_ylim(top=1.35 * axes.get_ylim()[1])
        axes.legend(loc="upper left", ncols=2)
    painting.over_time(free, series["time_s"])


def block_sizes(finding: Finding, figure: "Figure") -> None:
    """Waste by block size, and how many blocks there are to keep count of."""
    waste, count = figure.subplots(2, 1, sharex=True)
    series, places = finding.series, np.arange(len(finding.series["block_tokens"]))
    painting.line(waste, places, series["waste_share"], "blue", dots=True)
    painting.shares(waste, "wasted, of held")
    painting.line(count, places, series["blocks_per_request"], "orange", dots=True)
    painting.numbers(count, "blocks a request")
    painting.categories(count, [str(size) for size in series["block_tokens"]], "tokens in a block")


MACHINE: dict[str, Drawing] = {
    "usage.machine.hours": Drawing(
        paint=machine_by_hour,
        needs=("hour", "compute", "bandwidth", "compute_p95", "bandwidth_p95"),
        counts="buckets of telemetry",
        reads="Line: mean; shaded: up to the 95th percentile of buckets.",
    ),
    "usage.machine.load": Drawing(
        paint=machine_by_load,
        needs=("load", "compute", "bandwidth"),
        counts="buckets of telemetry",
        reads="Means of buckets by load.",
    ),
    "usage.memory.blocks": Drawing(
        paint=kv_blocks,
        needs=("time_s", "held", "written", "free", "largest_run"),
        counts="buckets of telemetry",
        reads="All replicas together. Above, held and not written: internal fragmentation; below, free and outside the "
        "longest run: external.",
        height=1.3,
    ),
    "usage.blocks.sizes": Drawing(
        paint=block_sizes,
        needs=("block_tokens", "waste_share", "blocks_per_request"),
        counts="answered requests",
        reads="As a paged allocator would hold them over their steps.",
        height=1.2,
    ),
}
