"""The plots of docs/validation.md: predicted against measured, and errors by group."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nanoserve.analysis.published.comparison import METRICS, Comparison
from nanoserve.report import theme
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXES = {
    "tpot": ("time per output token, ms", 1e3),
    "ttft": ("mean time to first token, ms", 1e3),
    "throughput": ("output tokens per second", 1.0),
}
_COLORS: Mapping[str, str] = {
    "vllm": "blue",
    "vllm_sync": "sky",
    "tensorrt_llm": "teal",
    "trtllm_serve": "red",
    "sglang": "violet",
    "generic": "orange",
}
_WITHIN = 0.10  # drawn as a band


def write(folder: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes scatter.png and errors.png, of at least one comparison.

    Raises:
      ConfigError: they cannot be written.
    """
    rows = [comparison for comparison in comparisons if not comparison.caveat]
    paints = {
        "scatter.png": ("Predicted against measured; the band is 10% either way", lambda f: _scatter(f, rows), 0.75),
        "errors.png": ("Error of each published row, by group; the bar is the median", lambda f: _errors(f, rows), 1.9),
    }
    for name, (title, paint, height) in paints.items():
        try:
            theme.save(str(folder / name), title, paint, height)
        except OSError as error:
            raise ConfigError(f"--out: {folder / name}: {error.strerror}") from error


def _scatter(figure: "Figure", comparisons: Sequence[Comparison]) -> None:
    figure.set_size_inches(figure.get_figwidth() * 1.7, figure.get_figheight() * 1.35)
    for axes, metric in zip(figure.subplots(1, len(METRICS)), _AXES, strict=True):
        _scatter_metric(axes, metric, [c for c in comparisons if metric in c.values])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), markerscale=1.6)


def _scatter_metric(axes: "Axes", metric: str, comparisons: Sequence[Comparison]) -> None:
    label, scale = _AXES[metric]
    axes.set(xscale="log", yscale="log", xlabel=f"measured {label}", ylabel="predicted")
    if not comparisons:
        return
    for constants, color in _COLORS.items():
        values = [c.values[metric] for c in comparisons if c.constants == constants]
        measured = [scale * value.measured for value in values]
        predicted = [scale * value.predicted for value in values]
        axes.scatter(measured, predicted, s=7, color=theme.DAY[color], alpha=0.7, linewidths=0, label=constants)
    ends = np.array([axes.get_xlim(), axes.get_ylim()])
    line = np.array([max(ends[:, 0].min(), _least(comparisons, metric) * scale), ends[:, 1].max()])
    axes.plot(line, line, color=theme.DAY["muted"], linewidth=0.8)
    axes.fill_between(
        line, line * (1 - _WITHIN), line * (1 + _WITHIN), color=theme.DAY["pale"], alpha=0.6, linewidth=0, zorder=0
    )


def _least(comparisons: Sequence[Comparison], metric: str) -> float:
    return 0.8 * min(min(c.values[metric].measured, c.values[metric].predicted) for c in comparisons)


def _errors(figure: "Figure", comparisons: Sequence[Comparison]) -> None:
    figure.set_size_inches(figure.get_figwidth() * 1.7, figure.get_figheight())
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(_group(comparison), []).append(comparison)
    names = sorted(groups, reverse=True)
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, metric in zip(panels, _AXES, strict=True):
        for place, name in enumerate(names):
            _strip(axes, place, metric, groups[name])
        axes.axvline(0, color=theme.DAY["muted"], linewidth=0.8)
        axes.axvspan(-100 * _WITHIN, 100 * _WITHIN, color=theme.DAY["pale"], alpha=0.5, linewidth=0, zorder=0)
        axes.set(xlim=(-75, 75), xlabel=f"{metric}: error, %")
    panels[0].set_yticks(range(len(names)), names, fontsize=8)


def _strip(axes: "Axes", place: int, metric: str, comparisons: Sequence[Comparison]) -> None:
    """One dot a row, beyond the edge drawn on it; the median as a bar."""
    errors = np.array([100 * c.values[metric].error for c in comparisons if metric in c.values])
    if not len(errors):
        return
    spread = np.random.default_rng(place).uniform(-0.25, 0.25, len(errors))
    color = theme.DAY[_COLORS.get(comparisons[0].constants, "grey")]
    axes.scatter(np.clip(errors, -75, 75), place + spread, s=6, color=color, alpha=0.6, linewidths=0)
    axes.plot([np.median(errors)] * 2, [place - 0.38, place + 0.38], color=theme.DAY["ink"], linewidth=1.6)


def _group(comparison: Comparison) -> str:
    engine = comparison.engine.replace(" (submission)", "")
    return f"{engine}, {comparison.model}, {comparison.chip}"
