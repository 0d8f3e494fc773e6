"""The recommended config against the baseline on requests that the choice never saw.

Both serve the same held-out requests, from the same times. Differences carry intervals from a paired block bootstrap.
A saving that the interval does not confirm is not claimed. Next: `recommendation`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from nanoserve.analysis.estimate import Estimate
from nanoserve.analysis.finding import Finding
from nanoserve.analysis.recommend.bootstrap import mean_difference, ratio_of_sums
from nanoserve.analysis.recommend.evidence import points
from nanoserve.analysis.recommend.saturation import WITHIN_SLO, Ceiling
from nanoserve.analysis.recommend.trial import Trial
from nanoserve.report import units


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two configs at one load.

    Attributes:
      load: multiple of the logged one. before, after: baseline and recommendation.
      arrival_s: float [N], of the held-out requests in the log. covered_s: held-out time, at that load.
      block, block_s: int [N], which requests are resampled together, and the length of those blocks.
    """

    load: float
    before: Trial
    after: Trial
    arrival_s: np.ndarray
    covered_s: float
    block: np.ndarray
    block_s: float

    def goodput_rps(self, trial: Trial) -> float:
        """Good requests per second of held-out time."""
        return float(trial.good.sum()) / self.covered_s

    def failures(self) -> Estimate:
        """Failures after over failures before."""
        return ratio_of_sums(self.before.failed.astype(float), self.after.failed.astype(float), self.block)

    def goodput(self) -> Estimate:
        """Goodput after over goodput before."""
        return ratio_of_sums(self.before.good.astype(float), self.after.good.astype(float), self.block)

    def worth(self) -> Estimate:
        """Change of good less failed requests, as a share of all."""
        return mean_difference(self.before.worth, self.after.worth, self.block)


def outcome_finding(comparisons: Sequence[Comparison], rule: str) -> Finding:
    """What both configs did at each load."""
    last, rows = comparisons[-1], []
    for each in comparisons:
        for name, trial in (("baseline", each.before), ("recommended", each.after)):
            load: dict[str, Any] = {"config": f"{name}, {_load(each.load)}", "goodput_rps": each.goodput_rps(trial)}
            rows.append(load | trial.described())
    return Finding(
        key="proof.outcome",
        title=_verdict(comparisons),
        rows=len(last.arrival_s),
        values={"runs": rows},
        because=(f"Held-out time: {rule}.", *(_at(each) for each in comparisons)),
    )


def failures_finding(comparison: Comparison) -> Finding:
    """Failures before and after, over time."""
    before, after = (int(trial.failed.sum()) for trial in (comparison.before, comparison.after))
    ratio = comparison.failures()
    values: dict[str, Any] = {"load": comparison.load, "before": before, "after": after}
    if before:
        values |= {"cut_share": 1 - ratio.value, "cut_low_share": 1 - ratio.high, "cut_high_share": 1 - ratio.low}
        cut = f"{units.share(1 - ratio.value)} fewer ({1 - ratio.high:.1%} to {1 - ratio.low:.1%})"
        title = f"Held-out failures go from {before:,} to {after:,}: {cut if after < before else 'no fewer'}"
    else:
        title = (
            f"Held-out failures go from none to {after:,}" if after else "No held-out request fails with either config"
        )
    return Finding(
        key="proof.failures",
        title=title,
        rows=len(comparison.arrival_s),
        values=values,
        series=_over_time(comparison, "failed") if before or after else {},
        because=(
            f"At {_load(comparison.load)}. In brackets: the 95% interval, blocks of {units.time(comparison.block_s)} "
            "resampled.",
        ),
    )


def goodput_finding(comparison: Comparison) -> Finding:
    """Goodput before and after, over time."""
    ratio = comparison.goodput()
    before, after = (comparison.goodput_rps(trial) for trial in (comparison.before, comparison.after))
    values = {
        "load": comparison.load,
        "before_rps": before,
        "after_rps": after,
        "change_share": ratio.value - 1,
        "change_low_share": ratio.low - 1,
        "change_high_share": ratio.high - 1,
    }
    interval = f"{ratio.low - 1:+.1%} to {ratio.high - 1:+.1%}"
    rates = f"{units.significant(after)} instead of {units.significant(before)} good requests a second"
    return Finding(
        key="proof.goodput",
        title=f"Goodput changes by {ratio.value - 1:+.1%} ({interval}) at {_load(comparison.load)}",
        rows=len(comparison.arrival_s),
        values=values,
        series=_over_time(comparison, "good"),
        because=(f"{rates}, of held-out time: answered within the objective. In brackets: the 95% interval.",),
    )


def saturation_finding(
    before: tuple[float, Ceiling], after: tuple[float, Ceiling], base_rps: float, requests: int
) -> Finding:
    """The load that each config bears: by replay on held-out time, and by formula.

    Args:
      before, after: multiple of the logged load that is served with 99% good, and what the formula says.
      base_rps: the logged load where it was replayed. requests: replayed.
    """
    rows = [
        {
            "config": name,
            "by_replay_rps": multiple * base_rps,
            "times_the_log": multiple,
            "by_formula_rps": formula.requests_per_s,
            "batch": formula.batch,
            "held_by": formula.limit,
            "step_s": formula.step_s,
        }
        for name, (multiple, formula) in (("baseline", before), ("recommended", after))
    ]
    if before[0] and after[0]:
        gain = f": {after[0] / before[0]:.2f} times the baseline's"
    else:
        gain = "; the baseline serves no load so well" if after[0] else ""
    return Finding(
        key="proof.saturation",
        title=f"{after[0] * base_rps:.3g} requests/s are served with {WITHIN_SLO:.0%} within the objective{gain}",
        rows=requests,
        values={"base_rps": base_rps, "configs": rows},
        because=(
            "By replay: the busiest held-out time, compressed until 1% of the requests miss the objective. By formula: "
            "a full batch of mean requests on the roofline, which knows of no bursts and no spread of lengths. What "
            "the two differ by is the price of those.",
        ),
    )


def _verdict(comparisons: Sequence[Comparison]) -> str:
    """Whether it is better, at which load, and that it is not worse at the logged one."""
    for each in comparisons:
        worth = each.worth()
        if worth.decided:
            better = "beats" if worth.value > 0 else "is worse than"
            return f"The recommended config {better} the baseline at {_load(each.load)}"
    return "The recommended config cannot be told from the baseline"


def _at(comparison: Comparison) -> str:
    return f"At {_load(comparison.load)}, good less failed requests change by {points(comparison.worth())}."


def _load(load: float) -> str:
    return "the logged load" if load == 1.0 else f"{load:.2f} times the logged load"


def _over_time(comparison: Comparison, what: str) -> dict[str, np.ndarray]:
    """Requests of a kind by block: `start_s`, and counts `before`, `after`, `all`."""
    starts_s = np.unique(comparison.arrival_s // comparison.block_s) * comparison.block_s
    counts = {
        name: np.bincount(comparison.block, weights=getattr(trial, what), minlength=len(starts_s))
        for name, trial in (("before", comparison.before), ("after", comparison.after))
    }
    return {"start_s": starts_s, **counts, "all": np.bincount(comparison.block, minlength=len(starts_s))}
