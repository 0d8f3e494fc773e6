"""Drawings of experiments on the trace, of what follows from them, and of its proof: `analysis.recommend`."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.pages import painting
from nanoserve.analysis.pages.content import is_rows
from nanoserve.analysis.pages.drawing import Drawing
from nanoserve.report.theme import DAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def trade_off(finding: Finding, figure: "Figure") -> None:
    """What each value of a knob does to requests, to latency and to the queue."""
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(4, 3, 3))
    rows = _rows(finding, "trials")
    labels = [str(next(iter(row.values()))) for row in rows]
    places, (requests, latency, queue) = np.arange(len(rows)), panels
    painting.line(requests, places, _column(rows, "within_slo_share"), "teal", "within the objective", dots=True)
    painting.line(requests, places, _column(rows, "failed_share"), "red", "failed", dots=True)
    painting.shares(requests, "of requests")
    requests.set_ylim(-0.05, 1.42)
    requests.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    requests.legend(loc="upper left", ncols=2)
    painting.line(latency, places, _column(rows, "p95_ttft_s"), "blue", dots=True)
    painting.numbers(latency, "TTFT p95 (s)")
    painting.line(queue, places, _column(rows, "peak_queue"), "orange", dots=True)
    painting.numbers(queue, "longest queue")
    painting.categories(queue, labels, _choice(finding, "axis"))
    for axes in panels:
        _mark_choice(axes, labels, finding)


def _mark_choice(axes: "Axes", labels: list[str], finding: Finding) -> None:
    """Shades the value that was in force, and the chosen one."""
    for name, color in (("held", "grey"), ("chosen", "teal")):
        place = labels.index(_choice(finding, name))
        axes.axvspan(place - 0.32, place + 0.32, color=DAY[color], alpha=0.13, linewidth=0)


def _choice(finding: Finding, name: str) -> str:
    choice = finding.values["choice"]
    return str(choice[name]) if isinstance(choice, dict) else ""


def replicas(finding: Finding, figure: "Figure") -> None:
    """Replicas needed by hour, weekdays beside weekends, and the rate that asks for them."""
    rows = _rows(finding, "hours")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for kind, color in (("weekday", "blue"), ("weekend", "orange")):
        own = [row for row in rows if str(row["hour"]).startswith(kind)]
        if own:
            hours = np.arange(len(own))
            painting.line(upper, hours, _column(own, "busy_rps"), color, kind)
            lower.step(hours, _column(own, "needed"), where="mid", color=DAY[color], label=kind)
    painting.numbers(upper, "requests/s")
    upper.set_ylim(top=1.3 * upper.get_ylim()[1])
    upper.legend(loc="upper left", ncols=2)
    painting.numbers(lower, "replicas needed")
    lower.axhline(float(_number(finding, "replicas")), color=DAY["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    painting.whole_numbers(lower.yaxis)
    painting.hours_of_day(lower)


def before_and_after(finding: Finding, figure: "Figure") -> None:
    """Requests of a kind in each block of held-out time, by both configs."""
    axes, series = figure.add_subplot(), finding.series
    some = np.maximum(series["all"], 1)
    axes.plot(series["start_s"], series["before"] / some, "o", color=DAY["orange"], ms=4, label="baseline")
    axes.plot(series["start_s"], series["after"] / some, "o", color=DAY["teal"], ms=4, label="recommended")
    painting.over_time(axes, series["start_s"])
    painting.shares(axes, "share of the block's requests")
    axes.set_ylim(top=1.25 * max(axes.get_ylim()[1], 0.01))
    axes.legend(loc="upper left", ncols=2)


def bars_of_load(finding: Finding, figure: "Figure") -> None:
    """The load that each config bears, by replay and by formula."""
    axes, rows = figure.add_subplot(), _rows(finding, "configs")
    places = np.arange(len(rows))
    for offset, (name, label, color) in enumerate(
        (("by_replay_rps", "by replay, 99% within the objective", "teal"), ("by_formula_rps", "by formula", "pale"))
    ):
        heights = _column(rows, name)
        axes.bar(places + 0.36 * offset - 0.18, heights, 0.34, color=DAY[color], label=label)
        for place, height in zip(places, heights, strict=True):
            axes.annotate(
                f"{height:.3g}",
                (place + 0.36 * offset - 0.18, height),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
    axes.axhline(float(_number(finding, "base_rps")), color=DAY["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    painting.categories(axes, [str(row["config"]) for row in rows], "config")
    painting.numbers(axes, "requests/s")
    axes.grid(False, axis="x")
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])
    axes.legend(loc="upper left", ncols=2)


def _rows(finding: Finding, name: str) -> list[dict[str, Any]]:
    value = finding.values[name]
    return value if is_rows(value) else []


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=np.float64)


def _number(finding: Finding, name: str) -> float:
    value = finding.values[name]
    return float(value) if isinstance(value, int | float) else np.nan


EXPERIMENTS: dict[str, Drawing] = {
    "experiments": Drawing(
        paint=trade_off,
        needs=("trials", "choice"),
        counts="requests replayed for each value",
        reads="Shaded: grey is the value before, green the one taken. The queue is in requests, of one engine.",
        height=1.4,
    ),
    "recommend.replicas": Drawing(
        paint=replicas,
        needs=("hours", "replicas"),
        counts="requests",
        reads="Above: the rate that the busiest days reach; below, dashed: the replicas that there are.",
        height=1.2,
    ),
    "proof.failures": Drawing(
        paint=before_and_after,
        needs=("start_s", "before", "after", "all"),
        counts="held-out requests",
        reads="Share that failed, a dot a block of time.",
    ),
    "proof.goodput": Drawing(
        paint=before_and_after,
        needs=("start_s", "before", "after", "all"),
        counts="held-out requests",
        reads="Share answered within the objective, a dot a block of time.",
    ),
    "proof.saturation": Drawing(
        paint=bars_of_load,
        needs=("configs", "base_rps"),
        counts="held-out requests",
        reads="Dashed: the logged load of the busiest time.",
    ),
}
