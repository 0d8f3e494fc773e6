"""The attention benchmark as a picture: a row a shape, a dot for each attention, along the fraction of the ceiling.

Decode is held against the measured copy, prefill against the measured matrix product. What failed or was skipped has a
row that says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.bench.attention_results import MEASURED, OURS, fraction_of
from experiments.bench.attention_shapes import KINDS
from nanoserve.report.theme import DAY
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    "prefill": "FLOP/s, as a fraction of the measured matrix product",
}
_WIDTH_IN, _ROW_IN, _EDGE_IN = 7.5, 0.19, 0.9
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": DAY["muted"],
    "axes.labelcolor": DAY["muted"],
    "axes.axisbelow": True,
    "grid.color": DAY["rule"],
    "xtick.color": DAY["muted"],
    "ytick.color": DAY["ink"],
    "ytick.major.size": 0,
    "text.color": DAY["ink"],
    "legend.frameon": False,
}


def save(path: Path, shapes: Mapping[str, Mapping[str, Any]], note: str) -> None:
    """Draws the shapes into a file, of the type that its name says.

    Args:
      path: the file. shapes: records by name.
      note: what they were measured on.

    Raises:
      ConfigError: for a file that cannot be written, or a type that matplotlib does not know.
    """
    import matplotlib
    from matplotlib.figure import Figure

    kinds = {kind: rows for kind in KINDS if (rows := [item for item in shapes.items() if item[1]["kind"] == kind])}
    heights = [len(rows) * _ROW_IN + _EDGE_IN for rows in kinds.values()]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, sum(heights)), layout="constrained", facecolor=DAY["paper"])
        panels = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (kind, rows) in zip(panels, kinds.items(), strict=True):
            _panel(axes, kind, rows)
        figure.suptitle(note, fontsize=8, color=DAY["muted"], x=0.01, ha="left")
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--plot={path}: {error}. Name a .png, .svg or .pdf in a folder that exists") from error


def _panel(axes: "Axes", kind: str, rows: list[tuple[str, Mapping[str, Any]]]) -> None:
    drawn: dict[str, tuple[list[float], list[int]]] = {}
    for y, (_, record) in enumerate(rows):
        if record["status"] != MEASURED:
            axes.annotate(
                record["status"], (0, y), xytext=(4, 0), textcoords="offset points", va="center", color=DAY["red"]
            )
            continue
        for name, fraction in _fractions(record, kind):
            xs, ys = drawn.setdefault(name, ([], []))
            xs.append(fraction)
            ys.append(y)
    for name in (name for name in reversed(list(COLORS)) if name in drawn):  # ours on top
        size = 34 if name == OURS else 16
        axes.scatter(*drawn[name], s=size, color=DAY[COLORS[name]], label=name, linewidths=0, zorder=3)
    axes.set_yticks(range(len(rows)), [name.removeprefix(f"{kind}_") for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="both")
    axes.set_xlabel(CEILINGS[kind])
    axes.set_title(kind, loc="left", fontweight="bold", fontsize=9)
    if drawn:
        axes.legend(*_legend(axes), loc="lower right", bbox_to_anchor=(1, 1), ncols=len(drawn), handletextpad=0.2)


def _legend(axes: "Axes") -> tuple[list, list]:
    """Ours first."""
    handles, labels = axes.get_legend_handles_labels()
    return handles[::-1], labels[::-1]


def _fractions(record: Mapping[str, Any], kind: str) -> list[tuple[str, float]]:
    found = [(OURS, fraction_of(record, kind))]
    found += [(peer, fraction_of(each, kind)) for peer, each in record["peers"].items() if each["status"] == MEASURED]
    return [(name, fraction) for name, fraction in found if fraction is not None]
