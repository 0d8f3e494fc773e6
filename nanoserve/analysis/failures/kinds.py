"""What kinds of failure there are, how many of each, and at what hours.

A request's status says what failed where it can; where it says only that something did, the error log's type and text
say it. A served request may have failed its user as well: degraded, when it took more than twice the time that it takes
on a quiet engine; wrong, when an answer is empty or the error log says that it was no good.

Series of `failures.kinds`: `hour` 0 to 23; one array a kind, failures per thousand requests of that hour of the day.
Next: `queueing`, `oom`.
"""

import enum

import numpy as np
import polars as pl

from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.service import SERVED, Service


class Kind(enum.IntEnum):
    """What became of a request; every request is of one kind."""

    SERVED, OUT_OF_MEMORY, TIMEOUT, REFUSED, OTHER, WRONG_OUTPUT, DEGRADED = range(7)

    @property
    def key(self) -> str:
        """Its name in values and series."""
        return self.name.lower()

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return self.key.replace("_", " ")


FAILURES = (Kind.OUT_OF_MEMORY, Kind.TIMEOUT, Kind.REFUSED, Kind.WRONG_OUTPUT, Kind.OTHER)
STATUSES = {503: Kind.OUT_OF_MEMORY, 507: Kind.OUT_OF_MEMORY, 408: Kind.TIMEOUT, 504: Kind.TIMEOUT, 429: Kind.REFUSED}
PATTERNS = {
    Kind.OUT_OF_MEMORY: r"(?i)out.?of.?memory|\boom\b|failed to allocate|no free (page|block)s?",
    Kind.TIMEOUT: r"(?i)time.?d?.?out|deadline",
    Kind.REFUSED: r"(?i)refused|overload|too.?many.?requests|rate.?limit|queue (is )?full|unavailable",
    Kind.WRONG_OUTPUT: r"(?i)\bnan\b|non-?finite|garbled|invalid (token|utf|json|output)|checksum|wrong.?output",
}
"""Kind -> what its errors look like; the first that matches, type before text, is the kind."""
_FIRST_ERROR = 300
_MUCH = 0.5  # share of a request's time that was lost, from which a served one is called degraded


def kinds_of_requests(service: Service) -> np.ndarray:
    """The kind of each request by its status, int8 [N]; a status that is unknown is served."""
    if not service.has("status"):
        return np.zeros(service.requests.height, dtype=np.int8)
    status = service.requests["status"].fill_null(SERVED).to_numpy()
    kinds = np.where(status < _FIRST_ERROR, np.int8(Kind.SERVED), np.int8(Kind.OTHER))
    for each, kind in STATUSES.items():
        kinds[status == each] = kind
    return kinds


def kinds_of_errors(errors: pl.DataFrame) -> np.ndarray:
    """The kind of each row of an error log, by its type, else by its text; int8 [rows]."""
    texts = ["error_type", *(["traceback"] if "traceback" in errors.columns else [])]
    kind = pl.lit(int(Kind.OTHER), pl.Int8)
    for text in reversed(texts):
        for name, pattern in reversed(PATTERNS.items()):
            is_one = pl.col(text).fill_null("").str.contains(pattern)
            kind = pl.when(is_one).then(pl.lit(int(name), pl.Int8)).otherwise(kind)
    return errors.select(kind.alias("kind"))["kind"].to_numpy()


def failure_kinds(loss: Loss) -> Finding:
    """Counts failures by kind, and by kind and hour of the day.

    Args:
      loss: of the service.

    Returns:
      `failures.kinds`; rows are requests.
    """
    service = loss.service
    rows = service.requests.height
    logged = _logged(service)
    if not service.has("status") and not logged:
        return not_computed("failures.kinds", "Failures by kind", "no log has a status or an error")
    kinds = _with_poor_answers(loss)
    counts = dict(zip(Kind, np.bincount(kinds, minlength=len(Kind)).tolist(), strict=True))
    if not service.has("status"):
        counts |= logged
    failed = sum(counts[kind] for kind in FAILURES)
    return Finding(
        key="failures.kinds",
        title=_title(counts, failed, rows),
        rows=rows,
        values={
            "failed": failed,
            "failed_share": failed / max(rows, 1),
            **{kind.key: counts[kind] for kind in (*FAILURES, Kind.DEGRADED)},
            "errors_logged": {kind.key: count for kind, count in logged.items()},
        },
        series=_by_hour(loss, kinds) if service.dated else {},
        because=_because(counts, logged),
    )


def _logged(service: Service) -> dict[Kind, int]:
    """Rows of the error log by kind, those that there are."""
    if service.errors is None:
        return {}
    kinds, counts = np.unique(kinds_of_errors(service.errors), return_counts=True)
    return {Kind(kind): int(count) for kind, count in zip(kinds, counts, strict=True)}


def _with_poor_answers(loss: Loss) -> np.ndarray:
    """The kind of each request, served ones with an empty or a late answer told apart."""
    kinds = kinds_of_requests(loss.service)
    served = kinds == Kind.SERVED
    kinds[served & (loss.lost > _MUCH)] = Kind.DEGRADED
    kinds[served & (loss.service.floats("response_tokens") == 0)] = Kind.WRONG_OUTPUT
    return kinds


def _by_hour(loss: Loss, kinds: np.ndarray) -> dict[str, np.ndarray]:
    hours = loss.service.hours(loss.start_s)
    table = np.bincount(hours.astype(np.int64) * len(Kind) + kinds, minlength=24 * len(Kind)).reshape(24, len(Kind))
    per_thousand = 1000 * table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    return {"hour": np.arange(24)} | {kind.key: per_thousand[:, kind] for kind in (*FAILURES, Kind.DEGRADED)}


def _title(counts: dict[Kind, int], failed: int, rows: int) -> str:
    if not failed:
        degraded = counts[Kind.DEGRADED]
        return f"None of {rows:,} requests failed; {degraded:,} ({degraded / max(rows, 1):.1%}) were degraded"
    worst = max(FAILURES, key=lambda kind: counts[kind])
    share = f"{failed / max(rows, 1):.2%}"
    return f"{failed:,} of {rows:,} requests failed ({share}); {worst.words}: {counts[worst]:,} of them"


def _because(counts: dict[Kind, int], logged: dict[Kind, int]) -> tuple[str, ...]:
    counted = ", ".join(f"{kind.words} {counts[kind]:,}" for kind in (*FAILURES, Kind.DEGRADED))
    errors = ", ".join(f"{kind.words} {count:,}" for kind, count in logged.items())
    return (
        f"By status and answer: {counted}.",
        f"By the error log: {errors or 'no rows'}.",
        "Degraded: served, but in more than twice the time that it takes on a quiet engine.",
    )
