"""The attention benchmark as a picture: a row a shape, a dot for each attention, along the fraction of the ceiling.

Decode is held against the measured copy, prefill against the measured matrix product. What failed or was skipped has a
row that says so.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.bench.attention_results import MEASURED, OURS, fraction_of
from experiments.bench.attention_shapes import KINDS
from nanoserve.report import theme
from nanoserve.report.theme import DAY
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Mapping[str, str] = {
    OURS: "orange",
    "xla": "grey",
    "torch_sdpa": "blue",
    "torch_flex": "sky",
    "cudnn": "teal",
    "tpu_paged": "blue",
    "tpu_ragged": "teal",
    "triton_paged": "violet",
}
CEILINGS = {
    "decode": "bytes/s, as a fraction of the measured copy",
    "prefill": "FLOP/s, as a fraction of the measured product",
}
_USUAL_IN, _ROW_IN, _EDGE_IN = 3.5, 0.17, 1.1  # height of a figure of the report; of a row; around a panel's rows
_TITLE, _LABELS = 10, 7  # type sizes
_LARGEST, _SMALLER = 34, 16  # dots


def save(path: Path, shapes: Mapping[str, Mapping[str, Any]], note: str) -> None:
    """Draws the shapes into a file, of the type that its name says.

    Args:
      path: the file. shapes: records by name.
      note: what they were measured on.

    Raises:
      ConfigError: for a file that cannot be written, or a type that matplotlib does not know.
    """
    kinds = {kind: rows for kind in KINDS if (rows := [item for item in shapes.items() if item[1]["kind"] == kind])}
    heights = [len(rows) * _ROW_IN + _EDGE_IN for rows in kinds.values()]

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (kind, rows) in zip(panels, kinds.items(), strict=True):
            _panel(axes, kind, rows)
        _legend(figure, panels)

    try:
        theme.save(str(path), note, paint, sum(heights) / _USUAL_IN)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot={path}: {error}. Name a .png, .svg or .pdf in a folder that exists") from error


def _panel(axes: "Axes", kind: str, rows: list[tuple[str, Mapping[str, Any]]]) -> None:
    drawn: dict[str, tuple[list[float], list[int]]] = {}
    for y, (_, record) in enumerate(rows):
        if record["status"] != MEASURED:
            axes.text(0, y, f" {record['status']}", va="center", color=DAY["red"], fontsize=_LABELS)
            continue
        for name, fraction in _fractions(record, kind):
            xs, ys = drawn.setdefault(name, ([], []))
            xs.append(fraction)
            ys.append(y)
    for name in (name for name in reversed(list(COLORS)) if name in drawn):  # ours on top
        size = _LARGEST if name == OURS else _SMALLER
        axes.scatter(*drawn[name], s=size, color=DAY[COLORS[name]], label=name, linewidths=0, zorder=3)
    axes.set_yticks(range(len(rows)), [name.removeprefix(f"{kind}_") for name, _ in rows], fontsize=_LABELS)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(CEILINGS[kind])
    axes.set_title(kind, loc="left", fontsize=_TITLE)


def _legend(figure: "Figure", panels: Iterable["Axes"]) -> None:
    """One for all panels, at the foot, ours first."""
    dots = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        dots |= dict(zip(labels, handles, strict=True))
    names = [name for name in COLORS if name in dots]
    if names:
        figure.legend([dots[name] for name in names], names, loc="outside lower left", ncols=4)


def _fractions(record: Mapping[str, Any], kind: str) -> list[tuple[str, float]]:
    found = [(OURS, fraction_of(record, kind))]
    found += [(peer, fraction_of(each, kind)) for peer, each in record["peers"].items() if each["status"] == MEASURED]
    return [(name, fraction) for name, fraction in found if fraction is not None]
