"""Strokes that plots of findings are made of: lines, bands, bars, axes of time, hours, shares and logarithms.

Colours are names of `report.theme.DAY`, which the page follows into the dark. Next: `plots`, which says what is drawn
of which finding.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nanoserve.report import units
from nanoserve.report.axes import one_two_five, percent, time_axis
from nanoserve.report.theme import DAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COLORS = ("blue", "orange", "teal", "violet", "red", "grey")
"""Of several things in one plot, in order."""

_DAY_S = 86400.0
_LONG_DAYS = 2.0  # from here on time is counted in days


def line(axes: "Axes", x: np.ndarray, y: np.ndarray, color: str, label: str = "", *, dots: bool = False) -> None:
    """A curve; with dots where its points are few and each is a measurement."""
    axes.plot(x, y, color=DAY[color], label=label, marker="o" if dots else "", markersize=4.5)


def band(axes: "Axes", x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str) -> None:
    """What lies between two curves."""
    axes.fill_between(x, low, high, color=DAY[color], alpha=0.18, linewidth=0)


def area(axes: "Axes", x: np.ndarray, y: np.ndarray, color: str, label: str = "") -> None:
    """What lies below a curve."""
    axes.fill_between(x, y, color=DAY[color], alpha=0.25, linewidth=0)
    axes.plot(x, y, color=DAY[color], label=label, linewidth=1.3)


def stacked(axes: "Axes", x: np.ndarray, parts: Mapping[str, np.ndarray], width: float) -> None:
    """Bars on top of each other, a colour a part; parts that are nil everywhere are left out."""
    floor = np.zeros(len(x))
    drawn = {label: part for label, part in parts.items() if np.any(part)}
    for (label, part), color in zip(drawn.items(), COLORS, strict=False):
        axes.bar(x, part, width, bottom=floor, color=DAY[color], label=label.replace("_", " "), linewidth=0)
        floor = floor + part


def histogram(axes: "Axes", edges: np.ndarray, counts: np.ndarray, color: str) -> None:
    """Bars between edges."""
    axes.stairs(counts, edges, fill=True, color=DAY[color], alpha=0.55, linewidth=0)


def mark(axes: "Axes", x: float, text: str, color: str = "red", height: float = 0.96) -> None:
    """An upright line that is named near its top, if the axis reaches so far; `height` is a share of the axis."""
    low, high = axes.get_xlim()
    if not low <= x <= high:
        return
    axes.axvline(x, color=DAY[color], linewidth=1.0, linestyle=(0, (4, 3)))
    axes.annotate(
        text,
        (x, height),
        (4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        fontsize=9,
        color=DAY[color],
        va="top",
    )


def over_time(axes: "Axes", time_s: np.ndarray) -> None:
    """Time since the start of the log along the bottom: days where it is long."""
    span_s = float(time_s[-1] - time_s[0]) if len(time_s) > 1 else 1.0
    if span_s < _LONG_DAYS * _DAY_S:
        time_axis(axes, np.array([time_s[0], time_s[0] + max(span_s, 1e-6)]))
        return
    from matplotlib.ticker import MultipleLocator

    days = span_s / _DAY_S
    axes.xaxis.set_major_locator(MultipleLocator(_DAY_S * max(1, round(days / 8))))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / _DAY_S:.0f}")
    axes.set(xlabel="time since the start of the log (days)", xlim=(time_s[0], time_s[-1]))


def hours_of_day(axes: "Axes") -> None:
    """The hours of a day along the bottom."""
    axes.set(xlabel="hour of the day", xlim=(-0.6, 23.6))
    axes.set_xticks(range(0, 24, 3))


def shares(axes: "Axes", label: str) -> None:
    """Shares upwards from nothing."""
    axes.set_ylabel(label)
    high = _from_nothing(axes)
    if high > 0.1:
        percent(axes)
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def numbers(axes: "Axes", label: str) -> None:
    """Counts or amounts upwards from nothing, with prefixes."""
    axes.set_ylabel(label)
    _from_nothing(axes)
    axes.yaxis.set_major_formatter(lambda value, _: units.tick(value))


def _from_nothing(axes: "Axes") -> float:
    """Starts the upward axis at 0, and leaves a little room above what is drawn; returns its end."""
    high, drawn = axes.get_ylim()[1], float(axes.dataLim.y1)
    high = max(high, 1.06 * drawn) if np.isfinite(drawn) and drawn > 0 else high
    axes.set_ylim(0, high)
    return high


def log_bottom(axes: "Axes", label: str, low: float, high: float) -> None:
    """A logarithmic axis along the bottom: marks at 1, 2, 5 where it spans little, at powers of ten where much."""
    axes.set_xscale("log")
    axes.set(xlabel=label, xlim=(low, high))
    if high / low <= 300:
        one_two_five(axes)
        axes.xaxis.set_major_formatter(lambda value, _: units.tick(value))
    else:
        _powers(axes.xaxis)


def log_side(axes: "Axes", label: str) -> None:
    """A logarithmic axis upwards."""
    axes.set_yscale("log")
    axes.set_ylabel(label)
    _powers(axes.yaxis)


def categories(axes: "Axes", labels: Sequence[str], label: str) -> None:
    """Names along the bottom, at 0, 1, 2, ..."""
    axes.set_xticks(range(len(labels)), list(labels))
    axes.set(xlabel=label, xlim=(-0.5, len(labels) - 0.5))


def whole_numbers(axis: "Axis") -> None:
    """Marks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _powers(axis: "Axis") -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: units.tick(value) if value >= 1e-4 else f"{value:.0e}")
