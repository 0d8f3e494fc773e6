"""Where a profiled step's time went, beside the cost model's price of it: tables and a plot of a `Profile`.

Times are of one device step. Measured lines add up to the step; prices add up to the price of a step. A line without a
price is one that the cost model has inside others: launches and the waits between kernels belong to its operations.
Next: `nanoserve.roofline.profiled`, which the figures come from.
"""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from nanoserve.report import units
from nanoserve.report.content import BOUND_LABELS, Table
from nanoserve.report.theme import DAY, Plot, draw, save
from nanoserve.roofline.profiled import KindProfile, Line, Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Where a step's time went"
_READING = (
    "A line far above its price is where to look; the kernels behind it are named below. Waits between kernels are "
    "times in which the device did nothing within a plan. Host is what is left of a plan's time by the engine's clock: "
    "planning it, giving it to the device, taking its tokens back. Launches are in the prices of the operations."
)
_NO_PRICE = "in others"
_BOUNDS = {**BOUND_LABELS, "overhead": "launches", "": ""}  # what a price calls so has nothing unexplained in it
_TITLE_WIDTH = 90  # characters of a picture's title on one line
_LONGEST_NAME = 72  # of a kernel: a template's arguments say nothing more
_BAR, _HEIGHT_OF_A_LINE = 0.38, 0.115  # of a line's place; of a usual figure's height


def profile_intro(profile: Profile) -> list[str]:
    """What was profiled, and what to know before reading on, as sentences."""
    kinds = ", ".join(
        f"{_counted(kind.plans, f'{kind.kind} plan')} ({_counted(kind.steps, 'step')})" for kind in profile.kinds
    )
    return [
        f"Plans {profile.first} to {profile.end - 1} of the run on {profile.device}: {kinds}. Times are of one device "
        f"step, on average; prices are by {profile.calibrated_by}.",
        *profile.remarks,
        _READING,
    ]


def profile_table(kind: KindProfile) -> Table:
    """Every operation of a step: measured, priced, and what bounds its price; the sum last."""
    rows = [_row(line, kind) for line in kind.lines]
    sums = kind.duration_s, kind.calibrated_s, kind.sol_s
    ratio = units.significant(units.ratio(kind.duration_s, kind.calibrated_s))
    rows.append(("all", units.time(sums[0]), units.share(1.0), *map(units.time, sums[1:]), ratio, ""))
    header = (f"{kind.kind} step", "measured", "share", "priced", "datasheet limit", "measured / priced", "bound by")
    return Table(header, rows)


def kernel_table(kind: KindProfile) -> Table:
    """The kernels that took longest in each operation."""
    rows = [
        (line.label, ", ".join(f"{_shortened(name)} {units.time(seconds)}" for name, seconds in line.kernels))
        for line in kind.lines
        if line.kernels
    ]
    return Table((f"{kind.kind} step", "kernels that took longest, each in all layers of a step"), rows, prose=True)


def profile_plot(kind: KindProfile) -> Plot:
    """Measured against priced, an operation a line, the longest measured first."""
    note = (
        f"Mean of {_counted(kind.steps, 'step')} in {_counted(kind.plans, 'plan')}. {units.share(kind.attributed)} of "
        "the device's busy time has the name of an operation."
    )

    return draw(_title(kind), note, _painter(kind), height=_height(kind))


def save_profile_plot(path: str, kind: KindProfile) -> None:
    """Draws the same to a file of its own.

    Raises:
      OSError: the file cannot be written. ValueError: no such kind of file.
    """
    save(path, "\n".join(textwrap.wrap(_title(kind), _TITLE_WIDTH)), _painter(kind), height=_height(kind))


def _title(kind: KindProfile) -> str:
    longest = max(kind.lines, key=lambda line: line.measured_s)
    return (
        f"A {kind.kind} step takes {units.time(kind.duration_s)} and is priced at {units.time(kind.calibrated_s)}; "
        f"{units.share(units.ratio(longest.measured_s, kind.duration_s))} of it is {longest.label}"
    )


def _painter(kind: KindProfile) -> Callable[["Figure"], None]:
    return lambda figure: _bars(figure.add_subplot(), kind)


def _height(kind: KindProfile) -> float:
    return 0.3 + _HEIGHT_OF_A_LINE * len(kind.lines)


def _row(line: Line, kind: KindProfile) -> tuple[str, ...]:
    priced, limit = (
        _NO_PRICE if seconds is None else units.time(seconds) for seconds in (line.calibrated_s, line.sol_s)
    )
    share = units.share(units.ratio(line.measured_s, kind.duration_s))
    ratio = units.significant(line.ratio)
    return line.label, units.time(line.measured_s), share, priced, limit, ratio, _BOUNDS[line.bound]


def _bars(axes: "Axes", kind: KindProfile) -> None:
    size_s, unit = units.time_unit(kind.duration_s)
    places = np.arange(len(kind.lines))
    sides = (
        ("measured", "blue", -_BAR / 2, [line.measured_s for line in kind.lines]),
        ("priced", "orange", _BAR / 2, [line.calibrated_s or 0.0 for line in kind.lines]),
    )
    for label, color, side, seconds in sides:
        axes.barh(places + side, np.array(seconds) / size_s, height=_BAR, color=DAY[color], label=label)
    limits = np.array([line.sol_s or 0.0 for line in kind.lines]) / size_s
    shown = limits > 0
    axes.plot(limits[shown], places[shown] + _BAR / 2, "|", color=DAY["ink"], ms=8, mew=1.6, label="datasheet limit")
    axes.set_yticks(places, [line.label for line in kind.lines])
    axes.set(xlabel=f"time of a step ({unit})", xlim=(0, None))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower right")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
