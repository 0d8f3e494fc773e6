"""How likely a request times out, or fails at all, given how many were ahead of it.

Those ahead are counted from the API log itself: requests that its engine had taken and not finished when it came. That
is exact to the moment, which a bucket of telemetry is not; where telemetry has a queue, its mean is given beside.

Series of `failures.queue.timeouts`: `ahead` (requests, lower end of a bin, powers of two), `timeout_share`,
`timeout_low`, `timeout_high`, `failed_share`, `requests` (in the bin). Next: `oom`, `control`.
"""

import numpy as np

from nanoserve.analysis.failures.intervals import wilson
from nanoserve.analysis.failures.kinds import Kind, kinds_of_requests
from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.finding import Finding, not_computed

KEY = "failures.queue.timeouts"


def timeouts_by_queue(loss: Loss) -> Finding:
    """The share of requests that time out by how many were ahead.

    Args:
      loss: of the service.

    Returns:
      `failures.queue.timeouts`; rows are requests.
    """
    service = loss.service
    rows = service.requests.height
    if not service.has("status", "latency_s"):
        return not_computed(KEY, "Time-outs by queue length", "it needs status and latency of requests")
    if not rows:
        return not_computed(KEY, "Time-outs by queue length", "there are no requests")
    timed_out = kinds_of_requests(service) == Kind.TIMEOUT
    bins = np.floor(np.log2(loss.ahead + 1)).astype(np.int64)
    trials = np.bincount(bins)
    there = np.flatnonzero(trials)
    late, failed = (np.bincount(bins, mask)[there] for mask in (timed_out, service.failed))
    low, high = wilson(late, trials[there])
    ahead, share = 2.0**there - 1, late / trials[there]
    return Finding(
        key=KEY,
        title=_title(ahead, share, int(timed_out.sum()), rows),
        rows=rows,
        values={
            "timeouts": int(timed_out.sum()),
            "largest_ahead": int(loss.ahead.max()),
            "by_ahead": {f"{int(a)}+": float(s) for a, s in zip(ahead, share, strict=True)},
            **_telemetry_queue(loss),
        },
        series={
            "ahead": ahead,
            "timeout_share": share,
            "timeout_low": low,
            "timeout_high": high,
            "failed_share": failed / trials[there],
            "requests": trials[there],
        },
        because=("Intervals are Wilson's, 95%.", "Ahead are requests that the same engine had and had not finished."),
    )


def _title(ahead: np.ndarray, share: np.ndarray, timeouts: int, rows: int) -> str:
    if not timeouts:
        return f"No request timed out, with up to {int(ahead[-1]):,} or more ahead of it"
    worst = int(np.argmax(share))
    first, last = int(ahead[worst]), int(2 * ahead[worst])  # a bin ends where the next begins, at twice as many and one
    late = f"{share[worst]:.2%} of requests time out with {first:,} to {last:,} ahead of them"
    return f"{late}, {timeouts / rows:.2%} of all"


def _telemetry_queue(loss: Loss) -> dict[str, float]:
    if not loss.service.telemetry_has("queue") or loss.service.telemetry is None:
        return {}
    queue = loss.service.telemetry["queue"].to_numpy()
    return {"telemetry_queue_mean": float(np.nanmean(queue)), "telemetry_queue_max": float(np.nanmax(queue))}
