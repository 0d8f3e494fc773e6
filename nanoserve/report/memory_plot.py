"""The picture of what fits: sequences against context, as a compiler answers and as the memory model predicts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanoserve.report import units
from nanoserve.report.theme import DAY, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_boundary(
    path: str, what: str, contexts: Sequence[int], compiler: Sequence[int], model: Sequence[int], who: str
) -> None:
    """Draws the most sequences that fit at each context.

    Args:
      path: a .png, .svg or .pdf.
      what: model and chips, for the title.
      contexts: positions of each sequence.
      compiler, model: how many fit, by each.
      who: the compiler's name.

    Raises:
      OSError: the file cannot be written. ValueError: no such kind of file.
    """
    title = f"{what}: {who} accepts {compiler[0]:,} sequences of {contexts[0]:,},\nthe memory model {model[0]:,}"

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.set(xscale="log", yscale="log", xlabel="positions of each sequence", ylabel="sequences at once")
        axes.fill_between(contexts, [1] * len(contexts), compiler, color=DAY["sky"], alpha=0.35, linewidth=0)
        axes.plot(contexts, compiler, "o", color=DAY["blue"], label=f"largest that {who} accepts")
        axes.plot(contexts, model, color=DAY["orange"], label="memory model")
        axes.set_xticks(list(contexts), [f"{context:,}" for context in contexts], minor=False)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(lambda value, _: units.tick(value))
        axes.legend(loc="upper right")

    save(path, title, paint)
