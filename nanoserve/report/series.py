"""A run cut into equal stretches of time, and into cells of the roofline plane: small enough to draw, exact in sum.

A plan's amount (tokens, FLOPs, page-seconds) is spread evenly over its duration, so a stretch holds exactly what fell
into it, whether a plan is far shorter than a stretch or far longer. Next: `plots`.
"""

import dataclasses

import numpy as np


def rate_over_time(start_s: np.ndarray, duration_s: np.ndarray, amount: np.ndarray, edges_s: np.ndarray) -> np.ndarray:
    """Amount per second in each stretch.

    Args:
      start_s, duration_s: float [plans], in order and not overlapping.
      amount: [plans], what each plan did altogether. For a level (pages held), pass level x duration.
      edges_s: float [stretches + 1], rising.

    Returns:
      float [stretches].
    """
    if not len(start_s):
        return np.zeros(len(edges_s) - 1)
    done = np.cumsum(amount, dtype=np.float64)
    times = np.stack([start_s, start_s + duration_s], axis=1).ravel()
    totals = np.stack([np.append(0.0, done[:-1]), done], axis=1).ravel()
    reached = np.interp(edges_s, np.maximum.accumulate(times), totals)
    return np.diff(reached) / np.diff(edges_s)


def peak_over_time(start_s: np.ndarray, duration_s: np.ndarray, level: np.ndarray, edges_s: np.ndarray) -> np.ndarray:
    """Highest level in each stretch, with the arguments of `rate_over_time`.

    A plan counts in the stretch in which it starts, and through its mean in those that it spans.
    """
    peak = rate_over_time(start_s, duration_s, level * duration_s, edges_s)
    stretch = np.clip(np.searchsorted(edges_s, start_s, side="right") - 1, 0, len(peak) - 1)
    np.maximum.at(peak, stretch, level)
    return peak


def overlay(
    start_s: np.ndarray, duration_s: np.ndarray, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intervals that overlap, as those between any two of their ends: what `peak_over_time` takes.

    Args:
      start_s, duration_s: float [plans], of several engines. level: integers [plans], which add up.

    Returns:
      start_s, duration_s, level: float [intervals], in order and not overlapping.
    """
    times, changes = np.concatenate([start_s, start_s + duration_s]), np.concatenate([level, -level])
    order = np.argsort(times, kind="stable")
    times, levels = times[order], np.cumsum(changes[order])
    lasting = np.diff(times) > 0
    return times[:-1][lasting], np.diff(times)[lasting], levels[:-1][lasting].astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Cells:
    """Points of a plane gathered into cells: where their centre is, and how much time they stand for."""

    x: np.ndarray
    y: np.ndarray
    time_s: np.ndarray


def gather(x: np.ndarray, y: np.ndarray, time_s: np.ndarray, per_decade: int = 12) -> Cells:
    """Merges points that lie in the same cell of a log-log grid, weighted by time.

    Args:
      x, y: positive float [plans]. time_s: float [plans].
      per_decade: cells per factor of ten, both ways.

    Returns:
      At most as many points as there are cells; the sum of `time_s` is kept, and each centre is the geometric mean.
    """
    logs = np.stack([np.log10(x), np.log10(y)])
    _, cell = np.unique(np.floor(logs * per_decade).astype(np.int64), axis=1, return_inverse=True)
    cell = cell.ravel()
    total_s = np.bincount(cell, time_s)
    centre = [np.bincount(cell, log * time_s) / total_s for log in logs]
    return Cells(10.0 ** centre[0], 10.0 ** centre[1], total_s)
