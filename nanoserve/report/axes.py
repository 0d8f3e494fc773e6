"""What axes of plots are marked with: time in its unit, shares as percentages, round numbers on logarithmic ones."""

from typing import TYPE_CHECKING

import numpy as np

from nanoserve.report import units

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def time_axis(axes: "Axes", edges_s: np.ndarray) -> None:
    """Time along the bottom, in the unit that fits its span; `edges_s` are increasing, in seconds."""
    from matplotlib.ticker import MultipleLocator

    span_s = edges_s[-1] - edges_s[0]
    size_s, unit = units.time_unit(span_s)
    between = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if span_s / size_s / step <= 8), 100)
    axes.xaxis.set_major_locator(MultipleLocator(between * size_s))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / size_s:,.4g}")
    axes.set(xlabel=f"time ({unit})", xlim=(edges_s[0], edges_s[-1]))


def percent(axes: "Axes") -> None:
    """Shares upwards, as percentages up to 100%."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1 else "")


def one_two_five(axes: "Axes") -> None:
    """Marks at 1, 2 and 5 of each power of ten along a logarithmic bottom."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
