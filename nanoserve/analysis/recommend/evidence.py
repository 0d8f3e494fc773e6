"""Findings of a recommendation: what each knob did, which value follows, and from which evidence, in sentences."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from nanoserve.analysis.estimate import Estimate
from nanoserve.analysis.finding import Finding
from nanoserve.analysis.recommend.search import Curve
from nanoserve.report import units

NEEDLESS = "with the other changes nothing is gained"
COSTLY = "the logged load would be served worse"
_MOST_EVIDENCE = 2  # sentences of earlier findings beside a value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a knob.

    Attributes:
      curve: what it was read from. load: the multiple of the logged load at which.
      was, now: labels of the baseline's value and of the recommended one; equal where it stays.
      undone: why a change was taken back, `NEEDLESS` or `COSTLY`; empty where none was.
      evidence: titles of findings of the logs that speak about it.
    """

    curve: Curve
    load: float
    was: str
    now: str
    undone: str
    evidence: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether the baseline's value stays."""
        return self.was == self.now

    @property
    def sentence(self) -> str:
        """Why the value is what it is."""
        return _sentence(self.curve, self.undone)


def evidence_for(curve: Curve, findings: Sequence[Finding]) -> tuple[str, ...]:
    """Titles of the findings that speak about a knob, those that its list names first coming first."""
    known = [finding for finding in findings if finding.missing is None]
    spoken = [each for beginning in curve.knob.evidence for each in known if each.key.startswith(beginning)]
    return tuple(dict.fromkeys(finding.title for finding in spoken))[:_MOST_EVIDENCE]


def curve_finding(verdict: Verdict, requests: int) -> Finding:
    """The trade-off curve of one knob."""
    curve = verdict.curve
    rows = [
        {curve.knob.axis: setting.label} | trial.described()
        for setting, trial in zip(curve.settings, curve.trials, strict=True)
    ]
    return Finding(
        key=f"experiments.{curve.knob.name}",
        title=f"{curve.knob.subject}: {_short(curve, verdict.undone)}",
        rows=requests,
        values={"choice": _choice(verdict), **({} if curve.verdict == "same" else {"trials": rows})},
        because=(
            f"{verdict.sentence} At {verdict.load:.2f} times the logged load.",
            *(f"The logs say: {title}." for title in verdict.evidence),
        ),
    )


def _choice(verdict: Verdict) -> dict[str, Any]:
    curve = verdict.curve
    return {
        "axis": curve.knob.axis,
        "held": curve.settings[curve.held].label,
        "chosen": curve.settings[curve.held].label if verdict.undone else curve.setting.label,
        "verdict": curve.verdict,
        "load": verdict.load,
        "worth_change": curve.worth.value,
        "worth_low": curve.worth.low,
        "worth_high": curve.worth.high,
    }


def values_finding(verdicts: Sequence[Verdict], requests: int) -> Finding:
    """All recommended values with their reasons, changed ones first."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.kept)
    changed = [verdict for verdict in ordered if not verdict.kept]
    rows: list[dict[str, Any]] = [
        {
            "knob": verdict.curve.knob.subject,
            "was": verdict.was,
            "recommended": verdict.now,
            "as good": ", ".join(verdict.curve.settings[place].label for place in verdict.curve.tied),
            "because": verdict.sentence,
            "evidence in the logs": " ".join(f"{title}." for title in verdict.evidence) or "none of the findings",
        }
        for verdict in ordered
    ]
    what = ", ".join(f"{each.curve.knob.name.replace('_', ' ')} {each.now}" for each in changed)
    title = f"{len(changed)} of {len(verdicts)} values change: {what}" if changed else "Nothing needs to change"
    return Finding(key="recommend.values", title=title, rows=requests, values={"changed": len(changed), "knobs": rows})


def points(worth: Estimate) -> str:
    """A difference in worth with its interval, in points of a hundred requests."""
    return f"{100 * worth.value:+.2f} points (95% interval {100 * worth.low:+.2f} to {100 * worth.high:+.2f})"


def _short(curve: Curve, undone: str) -> str:
    held, chosen = curve.settings[curve.held].label, curve.setting.label
    worth = 100 * curve.worth.value
    if undone:
        return f"{held} stays, {undone}"
    if curve.verdict == "better":
        return f"{chosen} instead of {held} is worth {worth:+.1f} points"
    if curve.verdict == "sooner":
        return f"{chosen} instead of {held} answers {units.share(curve.pace.value)} sooner"
    return {
        "safer": f"{chosen} is as good as {held}, and safer",
        "right": f"{held} is right",
        "undecided": f"{held} stays, the requests cannot decide",
        "alike": f"no other value is better, {held} stays",
        "same": f"makes no difference here, {held} stays",
    }[curve.verdict]


def _sentence(curve: Curve, undone: str) -> str:
    held, chosen = curve.settings[curve.held].label, curve.setting.label
    if undone:
        return f"{chosen} was better than {held} where it was tried, but {undone}: {held} stays."
    worth = points(curve.worth)
    return {
        "better": f"{chosen} instead of {held}: good less failed requests change by {worth}.",
        "sooner": (
            f"{chosen} instead of {held}: worth the same within what can be told, {worth}, and answers come "
            f"{units.share(curve.pace.value)} sooner."
        ),
        "safer": f"{chosen} instead of {held}: the safer of two that cannot be told apart, {worth}.",
        "right": f"{held} is right already: the best other value changes good less failed requests by {worth}.",
        "undecided": f"The data cannot decide: the best other value changes good less failed requests by {worth}.",
        "alike": f"{held} stays: no other value is worth more or answers sooner; the best of them changes {worth}.",
        "same": f"{held} stays: no request fares differently with another value.",
    }[curve.verdict]
