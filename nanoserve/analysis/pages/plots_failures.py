"""Drawings of what fails and why: `analysis.failures`."""

from typing import TYPE_CHECKING

import numpy as np

from nanoserve.analysis.failures.cause import NAMED_SCORE
from nanoserve.analysis.finding import Finding
from nanoserve.analysis.pages import painting
from nanoserve.analysis.pages.drawing import Drawing
from nanoserve.report import units
from nanoserve.report.theme import DAY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTICED = 0.05  # a replica that is slower by less than this is not: the least that the axis spans


def by_hour(finding: Finding, figure: "Figure") -> None:
    """Failures by kind and hour of the day."""
    axes, series = figure.add_subplot(), finding.series
    parts = {kind: counts for kind, counts in series.items() if kind != "hour"}
    painting.stacked(axes, series["hour"], parts, 0.8)
    painting.hours_of_day(axes)
    painting.numbers(axes, "per thousand requests")
    if axes.get_legend_handles_labels()[0]:
        axes.set_ylim(top=1.3 * axes.get_ylim()[1])
        axes.legend(loc="upper left", ncols=3)


def by_queue(finding: Finding, figure: "Figure") -> None:
    """Time-outs, and failures of any kind, by how many were ahead."""
    axes, series = figure.add_subplot(), finding.series
    places = np.arange(len(series["ahead"]))
    painting.band(axes, places, series["timeout_low"], series["timeout_high"], "orange")
    painting.line(axes, places, series["timeout_share"], "orange", "timed out", dots=True)
    painting.line(axes, places, series["failed_share"], "grey", "failed in any way", dots=True)
    painting.categories(axes, [f"{int(ahead)}+" for ahead in series["ahead"]], "requests ahead in the same engine")
    painting.shares(axes, "share of requests")
    axes.legend(loc="upper left")


def memory_errors(finding: Finding, figure: "Figure") -> None:
    """Out-of-memory errors by day and kind of shortage."""
    axes, series = figure.add_subplot(), finding.series
    painting.stacked(axes, series["day"], {kind: count for kind, count in series.items() if kind != "day"}, 0.7)
    painting.numbers(axes, "out-of-memory errors")
    axes.set(xlabel="day of the log")
    painting.whole_numbers(axes.xaxis)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])
    axes.legend(loc="upper left", ncols=5)


def control_chart(finding: Finding, figure: "Figure") -> None:
    """The p95 against what is usual at its hour, and the sum of what exceeds it."""
    latency, cusum = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    series = finding.series
    painting.line(latency, series["time_s"], series["p95_s"], "blue", "p95")
    painting.line(latency, series["time_s"], series["usual_s"], "grey", "usual at that hour")
    alarms = series["alarm"] > 0
    latency.plot(series["time_s"][alarms], series["p95_s"][alarms], "o", color=DAY["red"], ms=3.5, label="alarm")
    painting.numbers(latency, "p95 latency (s)")
    latency.set_ylim(top=1.3 * latency.get_ylim()[1])
    latency.legend(loc="upper left", ncols=3)
    painting.area(cusum, series["time_s"], series["cusum"], "orange")
    cusum.axhline(5.0, color=DAY["red"], linewidth=0.9, linestyle=(0, (4, 3)))
    painting.numbers(cusum, "CUSUM (sigmas)")
    painting.over_time(cusum, series["time_s"])


def memory_floor(finding: Finding, figure: "Figure") -> None:
    """The least that is held, over time, and its trend."""
    axes, series = figure.add_subplot(), finding.series
    axes.plot(series["time_s"], series["floor_blocks"], "o", color=DAY["blue"], ms=4, label="least held in six hours")
    painting.line(axes, series["time_s"], series["trend_blocks"], "orange", "trend (Theil-Sen)")
    painting.numbers(axes, "KV blocks")
    painting.over_time(axes, series["time_s"])
    axes.set_ylim(top=1.3 * max(axes.get_ylim()[1], 1.0))
    axes.legend(loc="upper left", ncols=2)


def replica_paces(finding: Finding, figure: "Figure") -> None:
    """How much longer each replica takes for a token than the others."""
    axes, series = figure.add_subplot(), finding.series
    more, low, high = (series[name] - 1 for name in ("ratio", "ratio_low", "ratio_high"))
    places = np.arange(len(more))
    error = np.maximum(np.stack([more - low, high - more]), 0)
    axes.errorbar(places, more, error, fmt="o", color=DAY["blue"], capsize=3)
    axes.axhline(0.0, color=DAY["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    painting.categories(axes, [str(int(replica)) for replica in series["replica"]], "replica")
    axes.set_ylabel("time per token, beyond the others'")
    span = max(_NOTICED, 1.2 * float(np.nanmax(np.abs([low, high]))))
    axes.set_ylim(-span, span)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.0%}" if value else "0%")


def ranking(finding: Finding, figure: "Figure") -> None:
    """Scores of the causes, the highest on top."""
    axes = figure.add_subplot()
    scores = finding.values["scores"]
    if not isinstance(scores, dict):
        return
    names = sorted(scores, key=lambda name: scores[name])
    named = finding.values.get("named")
    chosen = named if isinstance(named, list) else []
    colors = [DAY["orange"] if name in chosen else DAY["pale"] for name in names]
    axes.barh(range(len(names)), [scores[name] for name in names], color=colors, height=0.65)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.grid(False, axis="y")
    most = max([*scores.values(), 2 * NAMED_SCORE])
    for place, name in enumerate(names):
        axes.annotate(
            f"{scores[name]:.2%}", (scores[name], place), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.axvline(NAMED_SCORE, color=DAY["red"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(xlabel="score: share of the service that is lost to it", xlim=(0, 1.18 * most))
    axes.xaxis.set_major_formatter(lambda value, _: f"{units.significant(100 * value)}%")


FAILURES: dict[str, Drawing] = {
    "failures.kinds": Drawing(
        paint=by_hour, needs=("hour",), counts="requests", reads="By the hour in which they were sent."
    ),
    "failures.queue.timeouts": Drawing(
        paint=by_queue,
        needs=("ahead", "timeout_share", "timeout_low", "timeout_high", "failed_share"),
        counts="requests",
        reads="Shaded: 95% intervals (Wilson).",
    ),
    "failures.memory.errors": Drawing(
        paint=memory_errors,
        needs=("day",),
        counts="out-of-memory errors",
        reads="External: room, but not in one run. Internal: room, had less been reserved. Kept: room, but for "
        "sessions between turns. Leaked: held by nobody. Full: none of these.",
    ),
    "failures.control.p95": Drawing(
        paint=control_chart,
        needs=("time_s", "p95_s", "usual_s", "alarm", "cusum"),
        counts="answered requests",
        reads="CUSUM alarms above the dashed line.",
        height=1.3,
    ),
    "failures.leak.floor": Drawing(
        paint=memory_floor, needs=("time_s", "floor_blocks", "trend_blocks"), counts="buckets of telemetry"
    ),
    "failures.replicas.pace": Drawing(
        paint=replica_paces,
        needs=("replica", "ratio", "ratio_low", "ratio_high"),
        counts="answered requests",
        reads="At equal load; bars: 95% intervals.",
    ),
    "causes.ranking": Drawing(
        paint=ranking,
        needs=("scores",),
        counts="requests",
        reads="Named causes are orange; the dashed line is the least score that is named.",
    ),
}
