"""What kinds of failure there are, how many of each, and at what hours.

A request's status says what failed where it can; where it says only that something did, the error log's type and text
say it. A served request may have failed its user as well: degraded, when it took more than twice the time that it takes
on a quiet engine; wrong, when an answer is empty or the error log says that it was no good.

Series of `failures.kinds`: `hour` 0 to 23; one array a kind, failures per thousand requests of that hour of the day.
Next: `queueing`, `oom`.
"""

import numpy as np
import polars as pl

from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.service import Service

OUT_OF_MEMORY, TIMEOUT, REFUSED, WRONG, OTHER, DEGRADED = (
    *("out_of_memory", "timeout", "refused", "wrong_output", "other", "degraded"),
)
STATUSES = {503: OUT_OF_MEMORY, 507: OUT_OF_MEMORY, 408: TIMEOUT, 504: TIMEOUT, 429: REFUSED}
PATTERNS = {
    OUT_OF_MEMORY: r"(?i)out.?of.?memory|\boom\b|failed to allocate|no free (page|block)s?",
    TIMEOUT: r"(?i)time.?d?.?out|deadline",
    REFUSED: r"(?i)refused|overload|too.?many.?requests|rate.?limit|queue (is )?full|unavailable",
    WRONG: r"(?i)\bnan\b|non-?finite|garbled|invalid (token|utf|json|output)|checksum|mismatch|wrong.?output",
}
"""Kind -> what its errors look like; the first that matches, type before text, is the kind."""
_MUCH = 0.5  # share of a request's time that was lost, from which a served one is called degraded


def kinds_of_requests(service: Service) -> np.ndarray:
    """The kind of each request by its status, str [N]; empty for one that was served."""
    if not service.has("status"):
        return np.full(service.requests.height, "", dtype=object)
    status = pl.col("status").cast(pl.Int64)
    kind = pl.when(status.is_null() | (status < 300)).then(pl.lit(""))
    kind = kind.otherwise(status.replace_strict(STATUSES, default=OTHER, return_dtype=pl.String))
    return service.requests.select(kind.alias("kind"))["kind"].to_numpy()


def kinds_of_errors(errors: pl.DataFrame) -> pl.Series:
    """The kind of each row of an error log, by its type, else by its text."""
    texts = ["error_type", *(["traceback"] if "traceback" in errors.columns else [])]
    kind = pl.lit(OTHER)
    for text in reversed(texts):
        for name, pattern in reversed(PATTERNS.items()):
            kind = pl.when(pl.col(text).fill_null("").str.contains(pattern)).then(pl.lit(name)).otherwise(kind)
    return errors.select(kind.alias("kind"))["kind"]


def failure_kinds(loss: Loss) -> Finding:
    """Counts failures by kind, and by kind and hour of the day.

    Args:
      loss: of the service.

    Returns:
      `failures.kinds`; rows are requests.
    """
    service = loss.service
    rows = service.requests.height
    logged = {} if service.errors is None else dict(kinds_of_errors(service.errors).value_counts().iter_rows())
    if not service.has("status") and not logged:
        return not_computed("failures.kinds", "Failures by kind", "no log has a status or an error")
    members = _members(loss)
    counts = {kind: int(here.sum()) for kind, here in members.items()}
    if not service.has("status"):
        counts |= {kind: logged.get(kind, 0) for kind in (OUT_OF_MEMORY, TIMEOUT, REFUSED, WRONG, OTHER)}
    failed = sum(count for kind, count in counts.items() if kind != DEGRADED)
    return Finding(
        key="failures.kinds",
        title=_title(counts, failed, rows),
        rows=rows,
        values={"failed": failed, "failed_share": failed / max(rows, 1), **counts, "errors_logged": logged},
        series=_by_hour(loss, members) if service.dated else {},
        because=_because(counts, logged),
    )


def _members(loss: Loss) -> dict[str, np.ndarray]:
    """Kind -> which requests are of it, bool [N]; a request is of one kind."""
    kinds = kinds_of_requests(loss.service)
    served = kinds == ""
    wrong = served & (loss.service.floats("response_tokens") == 0)
    members = {kind: kinds == kind for kind in (OUT_OF_MEMORY, TIMEOUT, REFUSED, OTHER)}
    return members | {WRONG: wrong, DEGRADED: served & ~wrong & (loss.lost > _MUCH)}


def _by_hour(loss: Loss, members: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    hours = loss.service.hours(loss.start_s)
    sent = np.maximum(np.bincount(hours, minlength=24), 1)
    per_thousand = {kind: 1000 * np.bincount(hours[here], minlength=24) / sent for kind, here in members.items()}
    return {"hour": np.arange(24), **per_thousand}


def _title(counts: dict[str, int], failed: int, rows: int) -> str:
    if not failed:
        degraded = counts[DEGRADED]
        return f"None of {rows:,} requests failed; {degraded:,} ({degraded / max(rows, 1):.1%}) were degraded"
    worst = max((kind for kind in counts if kind != DEGRADED), key=lambda kind: counts[kind])
    return f"{failed:,} of {rows:,} requests failed ({failed / rows:.2%}); {_words(worst)}: {counts[worst]:,} of them"


def _because(counts: dict[str, int], logged: dict[str, int]) -> tuple[str, ...]:
    counted = ", ".join(f"{_words(kind)} {count:,}" for kind, count in counts.items())
    errors = ", ".join(f"{_words(kind)} {count:,}" for kind, count in sorted(logged.items()))
    return (
        f"By status and answer: {counted}.",
        f"By the error log: {errors or 'no rows'}.",
        "Degraded: served, but in more than twice the time that it takes on a quiet engine.",
    )


def _words(kind: str) -> str:
    return kind.replace("_", " ")
