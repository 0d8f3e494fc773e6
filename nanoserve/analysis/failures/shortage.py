"""Why memory was short for a request that waited or failed: what would have had to be otherwise for it to fit.

In the middle of its wait, or when it was refused, the pool is counted twice: as it was held, and as tokens needed it.
The first that applies is the reason:

  room       it would have fitted: no shortage, or blocks that are free but not in one run;
  leaked     it would have fitted but for blocks that nobody held;
  reserved   it would have fitted had nobody, itself included, held more blocks than tokens were written in;
  full       tokens of running requests filled the pool.

What runs is counted from the API log: a request holds its blocks from when it stopped waiting to its end. What sessions
keep between two turns is left out: whoever waits is served from it before anyone waits, and errors state it themselves
(`oom`). Next: `hypotheses`.
"""

import dataclasses
import enum

import numpy as np

from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.failures.occupancy import sums_by_replica


class Reason(enum.IntEnum):
    """Why a request did not fit; see above."""

    ROOM, LEAKED, RESERVED, FULL = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """One replica's pool at the moments of some requests; every array is [M], in blocks.

    Attributes:
      total: blocks there are. held: by running requests. written: by them, had each only what its tokens need.
      leaked: by nobody. need, need_written: of the request itself, likewise.
    """

    total: np.ndarray
    held: np.ndarray
    written: np.ndarray
    leaked: np.ndarray
    need: np.ndarray
    need_written: np.ndarray

    def reasons(self) -> np.ndarray:
        """The first `Reason` that applies to each, int [M]."""
        return np.select(
            [
                self.held + self.need + self.leaked <= self.total,
                self.held + self.need <= self.total,
                self.written + self.need_written + self.leaked <= self.total,
            ],
            [Reason.ROOM, Reason.LEAKED, Reason.RESERVED],
            default=Reason.FULL,
        )


def blocks_of(tokens: np.ndarray, block_tokens: int) -> np.ndarray:
    """Blocks that tokens need, [N]; 0 where they are unknown."""
    return np.ceil(np.nan_to_num(tokens, nan=0.0) / block_tokens)


def held_blocks(loss: Loss, moments_s: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of the weights of what runs on each request's replica at a moment of that request.

    Args:
      loss: of a service. moments_s: float [N]. weights: float [N], blocks of each request.
    """
    admitted_s = loss.start_s + loss.waited_s
    return sums_by_replica(moments_s, admitted_s, loss.end_s, loss.service.replicas, weights)


def in_wait_s(loss: Loss) -> np.ndarray:
    """The middle of each request's wait: for those that failed, of the time that they were there."""
    return loss.start_s + np.where(loss.service.failed, loss.end_s - loss.start_s, loss.waited_s) / 2
