"""What was in the engines at a moment, from the start and end of each request: counts and sums, replica by replica.

A request is there from its start up to, and without, its end. The cost is that of sorting: a moment's sum is the sum of
what started by then less the sum of what ended by then. Next: `shortage`, which asks how full the memory was.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Side = Literal["left", "right"]


def sums_at(
    moments_s: np.ndarray, start_s: np.ndarray, end_s: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """The sum of the weights of what is there at each moment.

    Args:
      moments_s: float [M]. What starts or ends at the very moment has not started, and has ended.
      start_s, end_s: float [N]; rows with NaN, or without duration, are nowhere.
      weights: float [N]; None counts.

    Returns:
      float [M].
    """
    known = start_s < end_s  # not so where either is NaN
    if not known.all():
        start_s, end_s = start_s[known], end_s[known]
        weights = None if weights is None else weights[known]
    if weights is None:
        began = np.searchsorted(np.sort(start_s, kind="stable"), moments_s, side="left")
        return (began - np.searchsorted(np.sort(end_s, kind="stable"), moments_s, side="right")).astype(np.float64)
    began = _reached(moments_s, start_s, weights, side="left")
    return began - _reached(moments_s, end_s, weights, side="right")


def sums_by_replica(
    moments_s: np.ndarray,
    start_s: np.ndarray,
    end_s: np.ndarray,
    replicas: np.ndarray,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """`sums_at` where row i of all arguments is one request, and only what is on its own replica counts.

    Returns:
      float [N].
    """
    sums = np.zeros(len(moments_s))
    for rows in rows_of(replicas):
        sums[rows] = sums_at(moments_s[rows], start_s[rows], end_s[rows], None if weights is None else weights[rows])
    return sums


def rows_of(replicas: np.ndarray) -> Iterator[np.ndarray | slice]:
    """The rows of each replica; all of them at once where there is but one."""
    names = np.unique(replicas)
    if len(names) <= 1:
        yield slice(None)
        return
    for name in names:
        yield np.flatnonzero(replicas == name)


def _reached(moments_s: np.ndarray, times_s: np.ndarray, weights: np.ndarray, side: Side) -> np.ndarray:
    """The sum of the weights whose times lie before each moment."""
    order = np.argsort(times_s, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum(weights[order], dtype=np.float64)])
    return totals[np.searchsorted(times_s[order], moments_s, side=side)]
