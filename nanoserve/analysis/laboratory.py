"""All that is asked of the logs of a service, in the order of the reasoning: the load, the machine, failures, causes.

Nothing here reads or writes files. Next: `anatomy`, `usage`, `failures`, which hold the questions; `recommend`, which
takes their answers further; `pages`, which sets them.
"""

from collections.abc import Callable

from nanoserve.analysis import failures, usage
from nanoserve.analysis.anatomy.all import ANATOMY
from nanoserve.analysis.failures.causes import diagnose
from nanoserve.analysis.finding import Finding
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.analysis.service import service_of

Told = Callable[[str], None]


def examine(joined: Joined, told: Told = lambda what: None) -> list[Finding]:
    """Answers every question that logs can answer, and says of the others why not.

    Args:
      joined: the logs. told: called with what comes next, once for each of `STAGES`.

    Returns:
      Findings in the order of the reasoning.
    """
    found = []
    for question in ANATOMY:
        told(f"load: {question.__name__.replace('_', ' ')}")
        answer = question(joined)
        found += [answer] if isinstance(answer, Finding) else answer
    service = service_of(joined.logs)
    told("machine")
    found += usage.findings(service)
    told("failures")
    found += failures.findings(service)
    told("causes")
    return found + diagnose(service).findings()


STAGES = len(ANATOMY) + 3
"""How often `examine` tells."""
