"""Bucket ladders: the few padded sizes that steps are compiled for, chosen from the sizes a trace will ask for.

A ladder is a tuple of sizes, ascending, whose last entry covers everything. More rungs mean less padding and more
programs; `best_ladder` finds the rungs that waste least for a given number of them.
"""

import bisect
from collections.abc import Sequence

import numpy as np

GRAIN = 8  # sizes are rounded up to this: finer rungs buy nothing on any chip
_MAX_CANDIDATES = 128


def bucket(ladder: Sequence[int], size: int) -> int:
    """The smallest rung that holds `size`.

    Raises:
      ValueError: `size` is above the last rung, which is a bug in the caller's limits.
    """
    place = bisect.bisect_left(ladder, size)
    if place == len(ladder):
        raise ValueError(f"size {size} is above the ladder {tuple(ladder)}")
    return ladder[place]


def geometric_ladder(top: int, ratio: int = 4) -> tuple[int, ...]:
    """Rungs 1, `ratio`, `ratio`**2, ... below `top`, then `top`: for sizes nobody knows beforehand."""
    rungs = []
    rung = 1
    while rung < top:
        rungs.append(rung)
        rung *= ratio
    return (*rungs, top)


def best_ladder(sizes: Sequence[int] | np.ndarray, top: int, rungs: int) -> tuple[int, ...]:
    """The at most `rungs` sizes, the last one `top`, that pad `sizes` least in sum.

    Args:
      sizes: expected sizes, each at least 1; those above `top` count as `top`.
      top: the largest size that can occur.
      rungs: how many programs are worth compiling.

    Returns:
      Ascending rungs; multiples of `GRAIN` except possibly `top`. Exact over the candidates (dynamic programming),
      which are thinned to 128 quantiles where there are more distinct sizes.
    """
    rounded = np.minimum(-(-np.asarray(sizes, dtype=np.int64) // GRAIN) * GRAIN, top)
    values, weights = np.unique(np.append(rounded, top), return_counts=True)
    if len(values) > _MAX_CANDIDATES:
        keep = np.unique(np.linspace(0, len(values) - 1, _MAX_CANDIDATES).astype(int))
        weights = np.add.reduceat(weights, np.append(0, keep[:-1] + 1))
        values = values[keep]
    cumulative = np.append(0, np.cumsum(weights))
    # cost[j] = least padded total for the first j candidates when candidate j - 1 is a rung
    cost = values * cumulative[1:]
    choices = []
    for _ in range(min(rungs, len(values)) - 1):
        table = cost[:, None] + values[None, :] * (cumulative[None, 1:] - cumulative[1:, None])
        table = np.where(np.tri(len(values), k=0, dtype=bool), np.iinfo(np.int64).max, table)
        table = np.vstack([table, values * cumulative[1:]])  # last row: no rung below
        choices.append(np.argmin(table, axis=0))
        cost = np.min(table, axis=0)
    ladder, place = [], len(values) - 1
    for choice in reversed(choices):
        ladder.append(int(values[place]))
        if choice[place] == len(values):
            return tuple(reversed(ladder))
        place = int(choice[place])
    return (*(() if place < 0 else (int(values[place]),)), *reversed(ladder))
