"""Drawings of who asks for how much, and when: `analysis.anatomy`."""

from typing import TYPE_CHECKING

import numpy as np

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.pages import painting
from nanoserve.analysis.pages.drawing import Drawing
from nanoserve.report import units
from nanoserve.report.theme import DAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MOST_DOTS = 800


def rate_by_hour(finding: Finding, figure: "Figure") -> None:
    """Requests per second by hour of the day, with the range over days, weekdays and weekends apart."""
    axes, series = figure.add_subplot(), finding.series
    painting.band(axes, series["hour"], series["p5_per_s"], series["p95_per_s"], "grey")
    painting.line(axes, series["hour"], series["mean_per_s"], "blue", "all days")
    for name, color in (("weekday", "teal"), ("weekend", "orange")):
        rate = series[f"{name}_per_s"]
        if np.isfinite(rate).any():
            axes.plot(series["hour"], rate, color=DAY[color], linewidth=1.1, linestyle=(0, (4, 2)), label=f"{name}s")
    painting.hours_of_day(axes)
    painting.numbers(axes, "requests/s")
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])
    axes.legend(loc="upper left", ncols=3)


def arrived_by(finding: Finding, figure: "Figure") -> None:
    """What part of the requests had come by when."""
    axes, time_s = figure.add_subplot(), 3600.0 * finding.series["time_h"]
    painting.area(axes, time_s, finding.series["share"], "blue")
    painting.over_time(axes, time_s)
    painting.shares(axes, "of all requests")


def gaps(finding: Finding, figure: "Figure") -> None:
    """The distribution of the times between requests: cumulative beside that of independent ones, and a histogram."""
    shares, counts = figure.subplots(2, 1, sharex=True)
    series = finding.series
    painting.line(shares, series["gap_s"], series["share"], "blue", "this log")
    painting.line(shares, series["gap_s"], series["poisson_share"], "grey", "independent arrivals at the same rate")
    painting.shares(shares, "gaps up to this")
    shares.legend(loc="upper left")
    painting.histogram(counts, series["edges_s"], series["requests"], "blue")
    painting.numbers(counts, "gaps, by tenths of a decade")
    _log_seconds(counts, *_filled(series["edges_s"], series["requests"]), "time to the next request")
    painting.mark(shares, 0.01, "10 ms", height=0.3)


def dispersion(finding: Finding, figure: "Figure") -> None:
    """Variance over mean of counts, by the length of the window they are counted in."""
    axes, series = figure.add_subplot(), finding.series
    painting.line(axes, series["window_s"], series["dispersion"], "blue", dots=True)
    axes.axhline(1.0, color=DAY["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate("independent arrivals", (series["window_s"][-1], 1.0), (0, 4), textcoords="offset points", ha="right")
    painting.log_side(axes, "variance over mean of counts")
    painting.log_bottom(axes, "window (s)", 0.8 * series["window_s"][0], 1.25 * series["window_s"][-1])


def lengths(finding: Finding, figure: "Figure") -> None:
    """A histogram of lengths, and the share of requests that are at least so long."""
    counts, tail = figure.subplots(2, 1, sharex=True)
    series = finding.series
    painting.histogram(counts, series["edges_tokens"], series["requests"], "teal")
    painting.numbers(counts, "requests")
    counts.set_ylim(top=1.2 * counts.get_ylim()[1])
    for name in ("p50_tokens", "p99_tokens"):
        value = finding.values.get(name)
        if isinstance(value, int | float):
            painting.mark(counts, value, f"{name[:3]} {value:,.0f}", "ink", 0.97)
    some = (series["tokens"] > 0) & (series["share_at_least"] > 0)
    painting.line(tail, series["tokens"][some], series["share_at_least"][some], "blue")
    painting.log_side(tail, "at least so long")
    _log_tokens(tail, series["tokens"][some])


def tail_fit(finding: Finding, figure: "Figure") -> None:
    """The longest lengths against a power law and a lognormal."""
    axes, series = figure.add_subplot(), finding.series
    some = (series["tokens"] > 0) & (series["share_at_least"] > 0)
    axes.plot(series["tokens"][some], series["share_at_least"][some], "o", color=DAY["blue"], ms=3, label="this log")
    for name, color in (("power_law", "orange"), ("lognormal", "teal")):
        painting.line(axes, series["tokens"][some], series[name][some], color, name.replace("_", " "))
    painting.log_side(axes, "share at least so long, of the tail")
    axes.set_ylim(bottom=series["share_at_least"][some].min() / 2)
    _log_tokens(axes, series["tokens"][some])
    axes.legend(loc="lower left")


def pair(finding: Finding, figure: "Figure") -> None:
    """Answers against prompts: some of the requests."""
    axes, series = figure.add_subplot(), finding.series
    step = 1 + len(series["prompt_tokens"]) // _MOST_DOTS
    prompts, answers = series["prompt_tokens"][::step], series["response_tokens"][::step]
    axes.plot(prompts, answers, "o", color=DAY["blue"], ms=2.5, alpha=0.45, mew=0)
    painting.log_side(axes, "tokens of the answer")
    _log_tokens(axes, series["prompt_tokens"], "tokens of the prompt")


def memory_by_prompt(finding: Finding, figure: "Figure") -> None:
    """What share of the KV memory prompts up to a length hold, beside their share of requests."""
    axes, series = figure.add_subplot(), finding.series
    painting.line(axes, series["prompt_tokens"], series["memory_share"], "orange", "KV memory")
    painting.line(axes, series["prompt_tokens"], series["request_share"], "blue", "requests")
    painting.shares(axes, "of prompts up to this length")
    _log_tokens(axes, series["prompt_tokens"], "tokens of the prompt")
    axes.legend(loc="upper left")


def session_durations(finding: Finding, figure: "Figure") -> None:
    """How long sessions of several turns last."""
    axes, series = figure.add_subplot(), finding.series
    painting.line(axes, series["duration_s"], series["share"], "blue")
    painting.shares(axes, "of sessions up to this")
    _log_seconds(axes, *_span(series["duration_s"]), "from the first request to the last")


def session_turns(finding: Finding, figure: "Figure") -> None:
    """How many sessions have how many turns."""
    axes, series = figure.add_subplot(), finding.series
    axes.bar(series["turns"], series["sessions"], 0.8, color=DAY["blue"], linewidth=0)
    painting.log_side(axes, "sessions")
    axes.set(xlabel="turns of the session")
    painting.whole_numbers(axes.xaxis)


def session_growth(finding: Finding, figure: "Figure") -> None:
    """KV of a session by its turn."""
    axes, series = figure.add_subplot(), finding.series
    painting.line(axes, series["turn"], series["kv_tokens"], "blue", dots=len(series["turn"]) < 40)
    painting.numbers(axes, "KV of the session (tokens)")
    axes.set(xlabel="turn, from 0")
    painting.whole_numbers(axes.xaxis)


def session_gaps(finding: Finding, figure: "Figure") -> None:
    """Time to the next turn, and to the user's next session."""
    axes, series = figure.add_subplot(), finding.series
    for name, label, color in (
        ("next_turn_share", "next turn of the session", "blue"),
        ("next_session_share", "next session of the user", "orange"),
    ):
        if np.isfinite(series[name]).any():
            painting.line(axes, series["gap_s"], series[name], color, label)
    painting.shares(axes, "came within this time")
    _log_seconds(axes, *_span(series["gap_s"]), "time since the one before")
    axes.legend(loc="upper left")


def prefix_reuse(finding: Finding, figure: "Figure") -> None:
    """The share of prompt tokens that an earlier prompt had begun with, as the log goes on."""
    axes, series = figure.add_subplot(), finding.series
    painting.line(axes, series["request"], series["share"], "blue")
    painting.shares(axes, "prompt tokens seen before")
    axes.set(xlabel="requests so far")
    axes.xaxis.set_major_formatter(lambda value, _: units.tick(value))


def _log_seconds(axes: "Axes", low: float, high: float, label: str) -> None:
    """A logarithmic axis of times, each mark in the unit that fits it."""
    painting.log_bottom(axes, label, low, high)
    axes.xaxis.set_major_formatter(lambda value, _: _time_mark(value))


def _time_mark(seconds: float) -> str:
    """Powers of ten stay so: minutes and hours would make odd numbers of them."""
    if seconds >= 1:
        return f"{seconds:,.0f} s"
    size_s, unit = units.time_unit(seconds)
    return f"{seconds / size_s:.3g} {unit}"


def _log_tokens(axes: "Axes", tokens: np.ndarray, label: str = "tokens") -> None:
    low, high = _span(tokens)
    painting.log_bottom(axes, label, low, high)


def _span(values: np.ndarray) -> tuple[float, float]:
    """A range on a logarithmic axis that holds all positive values, never empty."""
    positive = values[values > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 10.0)
    return low / 1.1, max(high, 2 * low) * 1.1


def _filled(edges: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The range of the bins that have something in them."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return _span(edges)
    return _span(np.array([edges[filled[0]], edges[filled[-1] + 1]]))


LOAD: dict[str, Drawing] = {
    "anatomy.arrivals.hours": Drawing(
        paint=rate_by_hour,
        needs=("hour", "mean_per_s", "p5_per_s", "p95_per_s", "weekday_per_s", "weekend_per_s"),
        counts="requests",
        reads="Shaded: from the 5th to the 95th percentile of the days.",
    ),
    "anatomy.arrivals.cumulative": Drawing(paint=arrived_by, needs=("time_h", "share"), counts="requests"),
    "anatomy.arrivals.gaps": Drawing(
        paint=gaps,
        needs=("gap_s", "share", "poisson_share", "edges_s", "requests"),
        counts="requests",
        height=1.3,
    ),
    "anatomy.arrivals.dispersion": Drawing(
        paint=dispersion, needs=("window_s", "dispersion"), counts="requests", reads="Above 1: requests come in bursts."
    ),
    "anatomy.lengths.pair": Drawing(
        paint=pair,
        needs=("prompt_tokens", "response_tokens"),
        counts="requests",
        reads=f"Dots: at most {_MOST_DOTS} of them.",
    ),
    "anatomy.lengths.prompt.tail": Drawing(
        paint=tail_fit, needs=("tokens", "share_at_least", "power_law", "lognormal"), counts="requests"
    ),
    "anatomy.lengths.response.tail": Drawing(
        paint=tail_fit, needs=("tokens", "share_at_least", "power_law", "lognormal"), counts="requests"
    ),
    "anatomy.lengths": Drawing(
        paint=lengths,
        needs=("edges_tokens", "requests", "tokens", "share_at_least"),
        counts="requests",
        reads="Above: how many; below: which share is at least so long.",
        height=1.3,
    ),
    "anatomy.memory.by_prompt": Drawing(
        paint=memory_by_prompt, needs=("prompt_tokens", "request_share", "memory_share"), counts="requests"
    ),
    "anatomy.sessions.duration": Drawing(
        paint=session_durations, needs=("duration_s", "share"), counts="sessions of several turns"
    ),
    "anatomy.sessions.turns": Drawing(paint=session_turns, needs=("turns", "sessions"), counts="requests"),
    "anatomy.sessions.growth": Drawing(
        paint=session_growth,
        needs=("turn", "kv_tokens"),
        counts="requests",
        reads="Mean of the sessions that got there.",
    ),
    "anatomy.sessions.gaps": Drawing(
        paint=session_gaps, needs=("gap_s", "next_turn_share", "next_session_share"), counts="requests"
    ),
    "anatomy.prefix": Drawing(paint=prefix_reuse, needs=("request", "share"), counts="requests"),
}
