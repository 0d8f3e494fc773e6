"""What goes wrong in a service, read from its logs, and why. `findings` has it all; `causes` ranks the reasons."""

import numpy as np

from nanoserve.analysis.failures.case import Case
from nanoserve.analysis.failures.control import latency_charts
from nanoserve.analysis.failures.kinds import failure_kinds
from nanoserve.analysis.failures.leak import memory_trend
from nanoserve.analysis.failures.oom import out_of_memory
from nanoserve.analysis.failures.queueing import timeouts_by_queue
from nanoserve.analysis.failures.replicas import replica_paces
from nanoserve.analysis.finding import Finding


def findings(case: Case) -> list[Finding]:
    """Everything about failures, in the order in which a reader wants it.

    Args:
      case: made of the service's logs, and to be given to `causes.diagnose` as well: it remembers what it computed.
    """
    service, reserved = case.service, case.reserved_share
    written_share = 1.0 if np.isnan(reserved) else 1 - reserved
    return [
        failure_kinds(case.loss),
        timeouts_by_queue(case.loss),
        out_of_memory(service, written_share),
        latency_charts(case.loss),
        memory_trend(service),
        replica_paces(case.loss),
    ]
