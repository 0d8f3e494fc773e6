"""All that is asked of the logs of a service, in the order of the reasoning: the load, the machine, failures, causes.

Nothing here reads or writes files. Next: `anatomy`, `usage`, `failures`, which hold the questions; `recommend`, which
takes their answers further; `pages`, which sets them.
"""

import dataclasses
from collections.abc import Callable, Sequence

from nanoserve.analysis import failures, usage
from nanoserve.analysis.anatomy.all import ANATOMY
from nanoserve.analysis.failures.case import Case
from nanoserve.analysis.failures.cause import Cause
from nanoserve.analysis.failures.causes import diagnose
from nanoserve.analysis.failures.counterfactual import bound, replay_finding
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.analysis.service import service_of
from nanoserve.experiment import Experiment
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.types import Trace

Told = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What logs say: findings in the order of the reasoning, and the named causes, the weightiest first."""

    findings: tuple[Finding, ...]
    named: tuple[Cause, ...]


def examine(joined: Joined, told: Told = lambda what: None) -> Answers:
    """Answers every question that logs can answer, and says of the others why not.

    Args:
      joined: the logs. told: called with what comes next, once for each of `STAGES`.
    """
    found: list[Finding] = []
    for question in ANATOMY:
        told(f"load: {question.__name__.replace('_', ' ')}")
        answer = question(joined)
        found += [answer] if isinstance(answer, Finding) else answer
    case = Case(service_of(joined.logs))
    told("machine")
    found += usage.findings(case.service)
    told("failures")
    found += failures.findings(case)
    told("causes")
    diagnosis = diagnose(case)
    return Answers(findings=(*found, *diagnosis.findings()), named=diagnosis.named)


def replayed(
    causes: Sequence[Cause], baseline: Experiment, trace: Trace, told: Told = lambda what: None
) -> list[Finding]:
    """Tests each cause by a replay of the config with it and without it.

    Args:
      causes: to test. baseline: the config. trace: requests to replay. told: called after each cause.
    """
    findings = []
    for cause in causes:
        findings.append(_replayed(cause, baseline, trace))
        told(f"{cause.name} tested")
    return findings


def _replayed(cause: Cause, baseline: Experiment, trace: Trace) -> Finding:
    key, subject = f"causes.{cause.name}.replay", f"Replay without this: {cause.says}"
    try:
        if cause.bindings and bound(baseline, cause.bindings) == baseline:
            return not_computed(key, subject, "the baseline has not got this cause")
        return replay_finding(cause, baseline, trace)
    except ConfigError as error:
        return not_computed(key, subject, str(error))


STAGES = len(ANATOMY) + 3
"""How often `examine` tells."""
