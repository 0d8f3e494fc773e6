"""From logged requests and a baseline config to a config that serves them better, with its reasons and its proof.

The order of events: requests are split into training and held-out time; the load is raised until something is at stake;
knobs are turned on the busiest training time; changes that all of the training time does not confirm are taken back;
what remains is replayed against the baseline on held-out time. Nothing of the held-out time is looked at before that.
Next: `search`, `proof`.
"""

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.recommend import proof, stretches
from nanoserve.analysis.recommend.bootstrap import mean_difference
from nanoserve.analysis.recommend.capacity_by_hour import replicas_by_hour
from nanoserve.analysis.recommend.config_text import config_text
from nanoserve.analysis.recommend.evidence import COSTLY, NEEDLESS, Verdict, curve_finding, evidence_for, values_finding
from nanoserve.analysis.recommend.knob_list import knobs_for
from nanoserve.analysis.recommend.saturation import ceiling, saturation
from nanoserve.analysis.recommend.search import LEAST_WORTH, MOST_LOAD, Curve, descend, pressure, pruned
from nanoserve.analysis.recommend.trial import Trial, objective, run_trial
from nanoserve.experiment import Experiment, resolve
from nanoserve.trace.slices import chosen, scaled
from nanoserve.trace.types import Trace

_ROUNDS = 2
_WORTH_A_ROUND = 1.1, 4.0  # times the load of the last one: less is no news, more is nobody's business
_REPLAYS_A_ROUND, _REPLAYS_OF_PROOF = 16, 24

SEARCH_REQUESTS = 6000
"""Requests of training time that every option is tried on, at least: a second or two each."""

Told = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to run instead.

    Attributes:
      experiment: the config. verdicts: what became of each knob. findings: experiments, values, replicas, proof.
      reasons: field of a config -> the sentence that it follows from.
    """

    experiment: Experiment
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]
    reasons: dict[str, str]

    def text(self, header: str) -> str:
        """The config as a file that runs; `header` becomes its first comment."""
        return config_text(self.experiment, header, self.reasons)


def recommend(
    trace: Trace,
    baseline: Experiment,
    start: datetime.datetime,
    findings: Sequence[Finding] = (),
    *,
    dated: bool = True,
    told: Told = lambda what: None,
) -> Recommendation:
    """Finds a config for a trace and proves it.

    Args:
      trace: requests of the logs; time 0 is `start`. baseline: what the result is compared with, and starts from.
      start: when the log begins, aware. dated: whether it says what day that was.
      findings: what the logs said; values are motivated by them. told: called with what was just done.

    Raises:
      ConfigError: the baseline has no objective, or names something that does not exist. TraceError: too short.
    """
    split = stretches.split(trace.arrival_s)
    search = _Search(trace, split, baseline, remedies_of(findings), told)
    found, load = search.found()
    verdicts = search.verdicts(found, findings)
    tried = int(search.sample.sum())
    proven, replica_rps = _proofs(trace, split, baseline, found, load, told)
    replicas = found.cluster.mesh.get("data", 1)
    return Recommendation(
        experiment=found,
        verdicts=verdicts,
        findings=(
            _load_finding(split, tried, search.loads, len(trace)),
            *(curve_finding(verdict, tried) for verdict in verdicts),
            values_finding(verdicts, tried),
            replicas_by_hour(trace.arrival_s, start, replica_rps, replicas, dated=dated),
            *proven,
        ),
        reasons={next(iter(each.curve.setting.fields)): each.sentence for each in verdicts},
    )


class _Search:
    """The knobs turned in rounds, each at the load at which the config of the last one clearly fails.

    A later round finds what only matters once the first problem is gone. What it changes must not cost anything at the
    logged load.
    """

    def __init__(
        self, trace: Trace, split: stretches.Split, baseline: Experiment, remedies: Mapping[str, Any], told: Told
    ):
        objective(resolve(baseline).slo)
        self._trace, self._split, self._baseline, self._told = trace, split, baseline, told
        self._remedies = remedies
        self._knobs = knobs_for(trace)
        self._curves: dict[str, tuple[Curve, float]] = {}
        self._undone: dict[str, str] = {}
        self.sample = stretches.busiest(trace.arrival_s, split.training, split.stretch_s, SEARCH_REQUESTS)
        self.loads: list[float] = []

    def found(self) -> tuple[Experiment, float]:
        """The config, and the load at which the baseline clearly fails."""
        now, most = self._baseline, MOST_LOAD
        for _ in range(_ROUNDS):
            load = pressure(lambda at, now=now: _run(now, self._trace, self.sample, at, self._told), most)
            if self.loads and not _WORTH_A_ROUND[0] * self.loads[-1] <= load < most:
                break
            self.loads.append(load)
            now, most = self._round(now, load), _WORTH_A_ROUND[1] * load
        return now, self.loads[0]

    def _round(self, start: Experiment, load: float) -> Experiment:
        run = _remembering(lambda each: _run(each, self._trace, self.sample, load, self._told))
        block = stretches.blocks(self._trace.arrival_s[self.sample])[0]
        now, curves = descend(self._knobs, start, run, block)
        whole = _remembering(lambda each: _run(each, self._trace, self._split.training, load, self._told))
        block = stretches.blocks(self._trace.arrival_s[self._split.training])[0]
        now, taken_back = pruned(now, curves, whole, block, self._remedies)
        undone = dict.fromkeys(taken_back, NEEDLESS)
        if load > 1.0 and self._costs(start, now, block):
            now, undone = start, {curve.knob.name: COSTLY for curve in curves if curve.turned}
        for curve in curves:
            name, known = curve.knob.name, self._curves.get(curve.knob.name)
            if known is None or (curve.turned and name not in undone) or not known[0].turned:
                self._curves[name], self._undone[name] = (curve, load), undone.get(name, "")
        return now

    def _costs(self, before: Experiment, after: Experiment, block: np.ndarray) -> bool:
        """Whether the logged load is served worse."""
        one, other = (_run(each, self._trace, self._split.training, 1.0, self._told) for each in (before, after))
        worth = mean_difference(one.worth, other.worth, block)
        return worth.high < 0 and worth.value < -LEAST_WORTH

    def verdicts(self, found: Experiment, findings: Sequence[Finding]) -> tuple[Verdict, ...]:
        """What became of each knob that was turned."""
        return tuple(
            Verdict(
                curve=curve,
                load=load,
                was=curve.knob.label_of(curve.settings, self._baseline),
                now=curve.knob.label_of(curve.settings, found),
                undone=self._undone[curve.knob.name],
                evidence=evidence_for(curve, findings),
            )
            for curve, load in self._curves.values()
        )


def remedies_of(findings: Sequence[Finding]) -> dict[str, Any]:
    """Field of a config -> the value that takes away a cause that the logs name."""
    named = [each for each in findings if each.key.startswith("causes.") and each.values.get("named") is True]
    bindings = [each.values.get("bindings") for each in named]
    return {key: value for each in bindings if isinstance(each, dict) for key, value in each.items()}


def replays_at_most(trace: Trace, baseline: Experiment) -> int:
    """About how many replays `recommend` makes at most, for a display of progress."""
    tried = sum(len(knob.settings(baseline)) for knob in knobs_for(trace))
    return _ROUNDS * (tried + _REPLAYS_A_ROUND) + _REPLAYS_OF_PROOF


def _run(experiment: Experiment, trace: Trace, rows: np.ndarray, load: float, told: Told) -> Trial:
    trial = run_trial(experiment, scaled(chosen(trace, rows), 1 / load))
    told(f"{trial.good.mean():.1%} within the objective, {trial.failed.mean():.1%} failed")
    return trial


def _remembering(run: Callable[[Experiment], Trial]) -> Callable[[Experiment], Trial]:
    """The same, with every experiment run once."""
    known: dict[str, Trial] = {}

    def remembered(experiment: Experiment) -> Trial:
        key = repr(experiment)
        if key not in known:
            known[key] = run(experiment)
        return known[key]

    return remembered


def _load_finding(split: stretches.Split, tried: int, loads: Sequence[float], requests: int) -> Finding:
    if loads[0] == 1.0:
        why = "At the logged load the baseline already loses requests, so options are compared there."
    else:
        why = (
            "At the logged load the baseline serves all but a few requests within the objective. So times are "
            f"compressed {loads[0]:.2f} times, where it clearly fails, and options can be told apart."
        )
    again = [f"The config that this gives is tried again at {load:.2f} times the logged load." for load in loads[1:]]
    counts = {"training": int(split.training.sum()), "held_out": int(split.held_out.sum())}
    return Finding(
        key="experiments.load",
        title=f"Options are tried on {tried:,} requests of the busiest training time, at {loads[0]:.2f} times its load",
        rows=requests,
        values={"loads": [*loads], "tried": tried, **counts},
        because=(why, *again, f"The rule: {split.rule}."),
    )


def _proofs(
    trace: Trace, split: stretches.Split, baseline: Experiment, found: Experiment, load: float, told: Told
) -> tuple[list[Finding], float]:
    """Findings about held-out time, and what one replica of the found config serves, in requests per second."""
    arrival_s = trace.arrival_s[split.held_out]
    block, block_s = stretches.blocks(arrival_s)
    comparisons = [
        proof.Comparison(
            load=each,
            before=_run(baseline, trace, split.held_out, each, told),
            after=_run(found, trace, split.held_out, each, told),
            arrival_s=arrival_s,
            covered_s=split.held_out_s / each,
            block=block,
            block_s=block_s,
        )
        for each in dict.fromkeys((1.0, load))
    ]
    busy = stretches.busiest(trace.arrival_s, split.held_out, split.stretch_s, SEARCH_REQUESTS)
    busy_rps = stretches.rate_rps(trace.arrival_s, busy, split.stretch_s)
    borne = [saturation(lambda at, each=each: _run(each, trace, busy, at, told)) for each in (baseline, found)]
    formulas = [ceiling(each, trace) for each in (baseline, found)]
    decisive = comparisons[-1]
    findings = [
        proof.outcome_finding(comparisons, split.rule),
        proof.failures_finding(comparisons[0] if comparisons[0].before.failed.any() else decisive),
        proof.goodput_finding(decisive),
        proof.saturation_finding((borne[0], formulas[0]), (borne[1], formulas[1]), busy_rps, int(busy.sum())),
    ]
    return findings, borne[1] * busy_rps / found.cluster.mesh.get("data", 1)
