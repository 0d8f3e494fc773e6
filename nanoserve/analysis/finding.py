"""What an analysis says: one statement with its numbers, the rows behind it, and what a plot of it would need.

Analyses return findings and draw nothing; `analysis.pages` turns findings into HTML, Markdown and JSON. A finding that
could not be computed says why in `missing` and has no values.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

Value = int | float | str | bool | None | list[Any] | dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One statement.

    Attributes:
      key: stable and dotted, by part, subject and quantity: `anatomy.arrivals.gaps`, `failures.memory.leak`.
      title: a sentence that states what was found, with its number and unit: it is the title of the plot as well.
      rows: rows of the logs behind it.
      values: numbers by name, with units in the names; JSON can carry all of them.
      series: arrays for a plot, by name, with units in the names; not written to JSON.
      missing: why it could not be computed; None where it was.
      because: sentences of evidence or reasoning, in the order in which a reader wants them.
    """

    key: str
    title: str
    rows: int
    values: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    series: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    missing: str | None = None
    because: tuple[str, ...] = ()


def not_computed(key: str, subject: str, why: str) -> Finding:
    """A finding that could not be computed: which, of what, and why."""
    return Finding(key=key, title=f"{subject}: not computed", rows=0, missing=why)
