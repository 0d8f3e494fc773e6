"""How a report looks: its colours by day and by night, and how a matplotlib figure becomes part of the page.

A figure is drawn in the day colours; in its SVG every colour is then replaced by a CSS variable and the text is left
as text, so that it takes the page's fonts and follows it into the dark. Identical data gives identical bytes.
Next: `plots`.
"""

import dataclasses
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DAY: Mapping[str, str] = {
    "paper": "#ffffff",
    "ink": "#1c1e21",
    "muted": "#60666e",
    "rule": "#e2e5e9",
    "orange": "#c2620e",
    "blue": "#2f5fb3",
    "sky": "#86a5da",
    "teal": "#1d8a7a",
    "violet": "#8250a8",
    "grey": "#8d939b",
    "pale": "#d3d7dc",
    "red": "#b3261e",
}

NIGHT: Mapping[str, str] = {
    "paper": "#15171a",
    "ink": "#e5e7ea",
    "muted": "#9ba2ab",
    "rule": "#2c3037",
    "orange": "#f0a35e",
    "blue": "#7aa3ee",
    "sky": "#48659c",
    "teal": "#4cc2b0",
    "violet": "#bd94de",
    "grey": "#7c838c",
    "pale": "#3a3f47",
    "red": "#f2837b",
}

KIND_COLORS: Mapping[str, str] = {"prefill": "orange", "mixed": "teal", "decode": "blue"}
BOUND_COLORS: Mapping[str, str] = {
    "compute": "orange",
    "weights": "blue",
    "kv": "sky",
    "activations": "teal",
    "link": "violet",
    "overhead": "grey",
    "idle": "pale",
}

_WIDTH_IN, _HEIGHT_IN = 5.8, 3.5  # 418 x 252 CSS points: text of 10 is readable on a phone and not large on a desk
_DPI = 200
_GENERATED_ID = re.compile(
    r' id="(?:figure|axes|patch|text|matplotlib\.axis|xtick|ytick|line2d|legend|[A-Za-z]*Collection)_\d+"'
)
_BY_COLOR = {value: name for name, value in DAY.items()}
_COLOR = re.compile("|".join(_BY_COLOR))


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawn figure: what it shows (a finding, in words), what is behind it, and the SVG."""

    title: str
    note: str
    svg: str


def draw(title: str, note: str, paint: Callable[["Figure"], None], height: float = 1.0) -> Plot:
    """Draws a figure in the report's style.

    Args:
      title: the finding. note: the number of rows behind it, and how to read it.
      paint: adds axes to the figure it is given.
      height: times the usual height.
    """
    import matplotlib
    from matplotlib.figure import Figure

    salt = hashlib.sha256(title.encode()).hexdigest()[:8]  # element ids must not collide within a page
    with matplotlib.rc_context({**_style(), "svg.hashsalt": salt}):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN * height), layout="constrained")
        paint(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(title, note, _inline(out.getvalue()))


def save(path: str, title: str, paint: Callable[["Figure"], None], height: float = 1.0) -> None:
    """Draws a figure in the report's style, by day, to a file of its own; the ending of `path` says which kind.

    Args:
      path: a .png, .svg or .pdf. title: the finding, above the axes.
      paint, height: as for `draw`.

    Raises:
      OSError: the file cannot be written. ValueError: no such kind of file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style()):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN * height), layout="constrained", facecolor=DAY["paper"])
        paint(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        figure.savefig(path, dpi=_DPI)


def variables(colors: Mapping[str, str]) -> str:
    """CSS declarations of a palette."""
    return " ".join(f"--{name}: {value};" for name, value in colors.items())


def _inline(svg: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" focusable="false">', body)
    body = body.replace("xlink:href", "href")
    return _COLOR.sub(lambda found: f"var(--{_BY_COLOR[found.group()]})", _GENERATED_ID.sub("", body))


def _style() -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": DAY["muted"],
        "axes.labelcolor": DAY["muted"],
        "axes.labelsize": 9.5,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": DAY["rule"],
        "grid.linewidth": 0.8,
        "xtick.color": DAY["muted"],
        "ytick.color": DAY["muted"],
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "text.color": DAY["ink"],
        "lines.linewidth": 1.6,
        "lines.solid_joinstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": 9.5,
    }
