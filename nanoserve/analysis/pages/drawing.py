"""How one kind of finding is drawn. Next: `plots`, the table of them."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from nanoserve.analysis.finding import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A kind of plot.

    Attributes:
      paint: adds axes to a figure. needs: names of the series or values without which there is nothing to draw.
      counts: what the rows of the finding are. reads: how to read the plot, a sentence or two.
      height: times the usual height.
    """

    paint: Callable[[Finding, "Figure"], None]
    needs: tuple[str, ...]
    counts: str = "rows"
    reads: str = ""
    height: float = 1.0

    def possible(self, finding: Finding) -> bool:
        """Whether a finding has what the drawing needs, and something in it."""
        return all(name in finding.series or finding.values.get(name) for name in self.needs) and all(
            len(finding.series[name]) for name in self.needs if name in finding.series
        )
