"""What a load costs on a machine that is in order: lines behind bursts and long prompts, full batches, full memory.

A service loses something even where nothing is wrong. This says how much of the loss has which of these reasons, each
by itself: what a request would not have lost without it. Next: `causes`.
"""

import numpy as np

from nanoserve.analysis.failures.case import Case
from nanoserve.analysis.failures.kinds import Kind
from nanoserve.analysis.failures.shortage import Reason
from nanoserve.analysis.finding import Finding, not_computed

KEY = "causes.load"
_SAYS = {
    "line": "lines behind bursts and long prompts",
    "batches": "batches that slow their sequences",
    "full": "memory that running requests fill",
}


def load_itself(case: Case) -> Finding:
    """What the load costs, by reason.

    Args:
      case: of a service with first tokens.

    Returns:
      `causes.load`; rows are requests.
    """
    loss, rows = case.loss, case.service.requests.height
    if not rows or not case.service.has("ttft_s", "latency_s"):
        return not_computed(KEY, "What the load itself costs", "it needs first tokens and latencies")
    costs = {
        "line": float(loss.spared(loss.waited_s - loss.blocked_s).mean()),
        "batches": float(loss.spared(loss.slowed_s).mean()),
        "full": case.lost_to(Reason.FULL),
    }
    worst = max(costs, key=lambda name: costs[name])
    refused = float(np.mean(case.kinds == Kind.REFUSED))
    return Finding(
        key=KEY,
        title=f"The load itself costs most in {_SAYS[worst]}: {costs[worst]:.1%} of the service",
        rows=rows,
        values=costs | {"refused": refused},
        because=tuple(f"{_SAYS[name][0].upper()}{_SAYS[name][1:]} cost {cost:.2%}." for name, cost in costs.items()),
    )
