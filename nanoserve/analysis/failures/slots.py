"""Whether requests wait because only so many may run at once: the ceiling that they wait under.

How many decode on an engine at a moment is exact in the API log: those that have their first token and not their last.
Memory and bursts let that number vary; a limit of the engine does not. So if most of those that were blocked waited
while exactly as many decoded as ever do, slots are what they waited for. Next: `hypotheses`.
"""

import dataclasses

import numpy as np

from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.failures.occupancy import sums_by_replica
from nanoserve.analysis.failures.shortage import in_wait_s

_MOST = 0.5  # of those that were blocked
_LEAST_ROWS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceiling:
    """Under what requests waited.

    Attributes:
      slots: most requests that ever decoded on one engine. share: of the blocked requests, those in whose wait so many
        did. blocked: requests that were. under: which requests of the log had so many beside them, bool [N].
    """

    slots: int
    share: float
    blocked: int
    under: np.ndarray

    @property
    def binds(self) -> bool:
        """Whether slots are what most of those that were blocked waited for."""
        return self.share > _MOST


def ceiling(loss: Loss) -> Ceiling | None:
    """The most that decode at once, and who waited under it; None where too few were blocked to tell.

    Args:
      loss: of a service with first tokens.
    """
    blocked = (loss.blocked_s > 0) & ~loss.service.failed
    if np.count_nonzero(blocked) < _LEAST_ROWS:
        return None
    first_s = loss.start_s + loss.ttft_s
    decoding = sums_by_replica(in_wait_s(loss), first_s, loss.end_s, loss.service.replicas)
    under = decoding >= decoding.max()
    return Ceiling(
        slots=int(decoding.max()),
        share=float(np.mean(under[blocked])),
        blocked=int(np.count_nonzero(blocked)),
        under=under,
    )
