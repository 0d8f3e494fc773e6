"""Which findings are drawn, and how: a table from a finding's key to a `Drawing`.

A plot's title is the finding's own sentence, its note the number of rows behind it and how to read it. A finding whose
key is not in the table, or that lacks the arrays that its drawing needs, is set as a sentence with its numbers.
Next: `plots_load`, `plots_machine`, `plots_failures`, `plots_experiments`, which hold the drawings.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.pages.drawing import Drawing
from nanoserve.analysis.pages.plots_experiments import EXPERIMENTS
from nanoserve.analysis.pages.plots_failures import FAILURES
from nanoserve.analysis.pages.plots_load import LOAD
from nanoserve.analysis.pages.plots_machine import MACHINE
from nanoserve.report.theme import Plot, draw

DRAWINGS: Mapping[str, Drawing] = LOAD | MACHINE | FAILURES | EXPERIMENTS
"""Beginning of a key -> how such findings are drawn; the longest that fits counts."""


def drawing_of(finding: Finding) -> Drawing | None:
    """How a finding is drawn; None where it is not."""
    if finding.missing is not None:
        return None
    fitting = [beginning for beginning in DRAWINGS if f"{finding.key}.".startswith(f"{beginning}.")]
    drawing = DRAWINGS[max(fitting, key=len)] if fitting else None
    return drawing if drawing is not None and drawing.possible(finding) else None


def plot_of(finding: Finding, drawing: Drawing) -> Plot:
    """Draws a finding."""
    note = f"{finding.rows:,} {drawing.counts}. {drawing.reads}".strip()
    return draw(finding.title, note, functools.partial(drawing.paint, finding), drawing.height)


def draw_all(
    findings: Iterable[Finding],
    told: Callable[[int, str], None] = lambda done, key: None,
    helper: Executor | None = None,
) -> dict[str, Plot]:
    """Draws every finding that has a drawing.

    Args:
      findings: any. told: called after each with how many are done and its key.
      helper: another process that draws every second one, if there is one.

    Returns:
      Key -> plot.
    """
    wanted = [(finding, drawing) for finding in findings if (drawing := drawing_of(finding)) is not None]
    given = [] if helper is None else wanted[1::2]
    pending = {finding.key: helper.submit(plot_of, finding, drawing) for finding, drawing in given} if helper else {}
    plots: dict[str, Plot] = {}
    for finding, drawing in wanted:
        if finding.key not in pending:
            plots[finding.key] = plot_of(finding, drawing)
            told(len(plots), finding.key)
    for key, plot in pending.items():
        plots[key] = plot.result()
        told(len(plots), key)
    return plots
