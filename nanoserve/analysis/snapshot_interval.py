"""How often to take a snapshot: often costs time, seldom loses work, and between them is a best interval.

A run of `work_s` takes a snapshot, which stops it for `snapshot_s`, after every `interval_s` of work. Failures come at
random (exponential, one in `mtbf_s` on average), also during a snapshot or a recovery; each costs `recovery_s` and
whatever was done since the last snapshot. The best interval depends neither on the work nor on the recovery, which come
in either way.

Source: Young, "A first order approximation to the optimum checkpoint interval" (CACM 17, 1974); Daly, "A higher order
estimate of the optimum checkpoint interval for restart dumps" (Future Generation Computer Systems 22, 2006).
`tests/analysis/test_snapshot_interval.py` lays both beside a simulation of failures.
"""

import math


def young_interval_s(snapshot_s: float, mtbf_s: float) -> float:
    """The first approximation to the best interval, for snapshots that take little of the time between failures.

    Source: Young (1974), equation 9.
    """
    return math.sqrt(2 * snapshot_s * mtbf_s)


def best_interval_s(snapshot_s: float, mtbf_s: float) -> float:
    """Work between two snapshots with which a run is expected to end soonest.

    Args:
      snapshot_s: how long a snapshot stops the run. mtbf_s: mean time between failures.

    Source: Daly (2006), equation 37.
    """
    if snapshot_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = snapshot_s / (2 * mtbf_s)
    return young_interval_s(snapshot_s, mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - snapshot_s


def expected_s(work_s: float, interval_s: float, *, snapshot_s: float, mtbf_s: float, recovery_s: float) -> float:
    """When a run is expected to end, failures, snapshots and repeated work included.

    Args:
      work_s: how long it takes without all of them. interval_s: work between two snapshots.
      snapshot_s: how long each stops the run. mtbf_s: mean time between failures.
      recovery_s: from a failure until the work goes on from the last snapshot.

    Source: Daly (2006), equation 20.
    """
    segments = work_s / interval_s
    return mtbf_s * math.exp(recovery_s / mtbf_s) * math.expm1((interval_s + snapshot_s) / mtbf_s) * segments
