"""How far the simulator was off: signed relative errors of many comparisons, summed up by group.

Invariant: rows on which a constant was fitted, and rows with a caveat, are not in `validation_entries`, which is what
every simulated run prints as the error of its mode. Next: `targets`, `experiments/validate.py`.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nanoserve.analysis.published.comparison import METRICS, Comparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorSummary:
    """Relative errors of a metric over some rows: mean, median and 90th percentile of their size, and their mean."""

    rows: int
    mean_abs: float
    p50: float
    p90: float
    bias: float


def summarise(errors: Iterable[float]) -> ErrorSummary:
    """Sums up signed relative errors, of which there must be some."""
    signed = np.array(list(errors))
    size = np.abs(signed)
    return ErrorSummary(
        rows=len(signed),
        mean_abs=float(size.mean()),
        p50=float(np.median(size)),
        p90=float(np.percentile(size, 90)),
        bias=float(signed.mean()),
    )


def errors_by(
    comparisons: Iterable[Comparison], fields: Sequence[str]
) -> dict[tuple[str, ...], dict[str, ErrorSummary]]:
    """Groups comparisons by their fields and sums up each metric.

    Returns:
      Values of the fields, in sorted order -> metric -> summary; metrics that a group has no value of are left out.
    """
    groups: dict[tuple, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(tuple(getattr(comparison, field) for field in fields), []).append(comparison)
    return {tuple(str(value) for value in group): _errors_of(groups[group]) for group in sorted(groups)}


def _errors_of(comparisons: Sequence[Comparison]) -> dict[str, ErrorSummary]:
    metrics = dict.fromkeys(metric for comparison in comparisons for metric in comparison.values)
    return {metric: summarise(c.values[metric].error for c in comparisons if metric in c.values) for metric in metrics}


def validation_entries(comparisons: Iterable[Comparison], command: str) -> dict[str, Any]:
    """Returns `validation.json` of `roofline.constants_files`: held-out errors by `<chip>/<stack>/<mode>`.

    Args:
      comparisons: all of a run; training rows and rows with a caveat are left out. command: what makes them again.
    """
    held_out = [comparison for comparison in comparisons if not comparison.training and not comparison.caveat]
    entries = {}
    for (chip, stack), errors in errors_by(held_out, ("chip", "constants")).items():
        rows = [c for c in held_out if (c.chip, c.constants) == (chip, stack)]
        entries[f"{chip}/{stack}/calibrated"] = {
            "rows": len(rows),
            "sources": sorted({c.source for c in rows}),
            **{
                metric: {name: round(getattr(errors[metric], name), 4) for name in ("mean_abs", "p50", "p90")}
                for metric in METRICS
                if metric in errors
            },
            "command": command,
        }
    return entries
