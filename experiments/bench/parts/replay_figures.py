"""The figures of a run, and how far a simulation of it is off: what the goals of `replay` speak of.

Next: `nanoserve.report.comparison` (plan by plan), `replay_run` (whose runs these are).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.bench.results_file import Record
from nanoserve.report.comparison import compare_columns
from nanoserve.report.metrics import Columns, run_duration_s

BENCH, PROGRAMS = "bench", "programs"
FIGURES: Mapping[str, str] = {
    "total_s": "total",
    "tpot_p50_s": "TPOT p50",
    "tpot_p95_s": "TPOT p95",
    "ttft_p50_s": "TTFT p50",
    "ttft_p95_s": "TTFT p95",
}
GOALS: Mapping[str, float] = dict(zip(FIGURES, (0.05, 0.05, 0.05, 0.1, 0.1), strict=True))
"""How far off the simulation priced by the bench may be."""

QUANTILES = {"p50": 0.5, "p95": 0.95}


class Run(NamedTuple):
    """What a run left behind: `records.STEP_COLUMNS`, and its requests with their latencies."""

    steps: Columns
    requests: Columns


def described(run: Run) -> Record:
    """A run's own figures."""
    steps, requests = run
    by_kind = {
        kind: {
            "plans": int(mask.sum()),
            "steps": int(steps["steps"][mask].sum()),
            "seconds": float(steps["duration_s"][mask].sum()),
        }
        for kind in sorted(set(steps["kind"].tolist()))
        for mask in [steps["kind"] == kind]
    }
    tokens = int(requests["output_tokens"].sum())
    figures = figures_of(requests)
    return {
        "requests": len(requests["request"]),
        "finished": int(requests["completed"].sum()),
        "output_tokens": tokens,
        "output_tokens_per_s": tokens / figures["total_s"],
        "steps_by_kind": by_kind,
        "busy_s": float(steps["duration_s"].sum()),
        "between_plans_s": _between_s(steps),
        "host_gap_share": float(steps["host_gap_s"].sum() / steps["duration_s"].sum()),
        "padding_share": 1 - float(_new_tokens(steps).sum() / steps["executed_tokens"].sum()),
        "real": figures,
    }


def figures_of(requests: Columns) -> dict[str, float]:
    """What the goals speak of: the time of a run, and medians and 95th percentiles of its latencies."""
    figures = {"total_s": run_duration_s(requests)}
    for metric in ("tpot", "ttft"):
        values = requests[f"{metric}_s"]
        for name, quantile in QUANTILES.items():
            figures[f"{metric}_{name}_s"] = float(np.nanquantile(values, quantile))
    return figures


def compared(real: Run, simulated: Run, priced_s: np.ndarray) -> Record:
    """A simulation beside the run: its figures, their errors, and those of single plans.

    Args:
      real, simulated: both runs. priced_s: [plans of the real run], what each is priced at.
    """
    theirs, ours = figures_of(real.requests), figures_of(simulated.requests)
    errors = {name: ours[name] / theirs[name] - 1 for name in theirs}
    found = compare_columns(real.steps, priced_s, real.requests, simulated.requests)
    return {
        **ours,
        "errors": {name: error if math.isfinite(error) else None for name, error in errors.items()},
        "goals_met": {name: abs(errors[name]) <= goal for name, goal in GOALS.items()},
        "plans": [dataclasses.asdict(each) for each in found.steps],
    }


def _between_s(steps: Columns) -> float:
    """Seconds from a plan's end to the next one's start where sequences were waiting for it: the scheduler's own."""
    waited = steps["start_s"][1:] - (steps["start_s"] + steps["duration_s"])[:-1]
    return float(np.maximum(waited, 0.0)[steps["decode_seqs"][1:] > 0].sum())


def _new_tokens(steps: Columns) -> np.ndarray:
    return steps["steps"] * steps["decode_seqs"] + steps["drafted_tokens"] + steps["prefill_tokens"]
