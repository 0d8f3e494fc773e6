"""All that is asked of the logs of a service, in the order of the reasoning: the load, the machine, failures, causes.

Nothing here reads or writes files. Next: `anatomy`, `usage`, `failures`, which hold the questions; `recommend`, which
takes their answers further; `pages`, which sets them.
"""

import dataclasses
from collections.abc import Callable

from nanoserve.analysis import failures, usage
from nanoserve.analysis.anatomy.all import ANATOMY
from nanoserve.analysis.anatomy.published import beside_published
from nanoserve.analysis.failures.case import Case
from nanoserve.analysis.failures.cause import Cause
from nanoserve.analysis.failures.causes import diagnose
from nanoserve.analysis.finding import Finding
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.analysis.service import service_of
from nanoserve.analysis.usage.blocks import StepSeconds

Told = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What logs say: findings in the order of the reasoning, and the named causes, the weightiest first."""

    findings: tuple[Finding, ...]
    named: tuple[Cause, ...]


def examine(joined: Joined, told: Told = lambda what: None, step_s: StepSeconds | None = None) -> Answers:
    """Answers every question that logs can answer, and says of the others why not.

    Args:
      joined: the logs. told: called with what comes next, once for each of `STAGES`.
      step_s: what a decode step takes, where it is known on which chips the service ran.
    """
    found: list[Finding] = []
    for question in ANATOMY:
        told(f"load: {question.__name__.replace('_', ' ')}")
        answer = question(joined)
        found += [answer] if isinstance(answer, Finding) else answer
    case = Case(service_of(joined.logs))
    told("machine")
    machine = usage.findings(case.service, step_s)
    found += [beside_published([*found, *machine]), *machine]
    told("failures")
    found += failures.findings(case)
    told("causes")
    diagnosis = diagnose(case)
    return Answers(findings=(*found, *diagnosis.findings()), named=diagnosis.named)


STAGES = len(ANATOMY) + 3
"""How often `examine` tells."""
