"""How a service's load compares with what is published of a chatbot service, number by number.

The laboratory's own week (`trace.chatbot`) is made after the published numbers, so they are the yardstick that shows
whether it is what it claims to be; beside another service they say how unlike a chatbot's its load is.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from nanoserve.analysis.finding import Finding, Value, not_computed
from nanoserve.analysis.wording import figure

WITHIN = 0.1
"""How far from a published number counts as meeting it, relative to it."""
_KEY, _SUBJECT = "anatomy.published", "The load beside a published chatbot service's"
Found = Mapping[str, Finding]


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A published number.

    Attributes:
      name: with its unit. low, high: published; one number where they are equal, otherwise a range.
      here: reads the same from the findings about a log; KeyError or TypeError where it was not computed.
    """

    name: str
    low: float
    high: float
    here: Callable[[Found], float]

    def apart(self, value: float) -> float:
        """How far a value is outside what is published, relative to it; 0 within a range."""
        if self.low <= value <= self.high:
            return 0.0
        return value / self.low - 1 if value < self.low else value / self.high - 1


def _column(name: str, what: str) -> Callable[[Found], float]:
    """A value of a column in `anatomy.numbers`."""
    return lambda found: found["anatomy.numbers"].values[name][what]  # type: ignore[call-overload, index, return-value]


def _value(key: str, name: str) -> Callable[[Found], float]:
    return lambda found: found[key].values[name]  # type: ignore[return-value]


def _weekday_swing(found: Found) -> float:
    """The busiest hour of a weekday over the quietest."""
    by_hour = found["anatomy.arrivals.hours"].series["weekday_per_s"]
    return float(by_hour.max() / by_hour.min())


STATISTICS: Sequence[Statistic] = (
    Statistic("rate of the busiest over the quietest hour", 520 / 25, 520 / 25, _weekday_swing),
    Statistic("share of gaps within 10 ms", 0.5, 0.5, _value("anatomy.arrivals.gaps", "share_within_10ms")),
    Statistic("prompt p50, tokens", 128, 128, _column("prompt_tokens", "p50")),
    Statistic("prompt mean, tokens", 512, 512, _column("prompt_tokens", "mean")),
    Statistic("prompt p95, tokens", 2048, 2048, _column("prompt_tokens", "p95")),
    Statistic("prompt p99, tokens", 4096, 4096, _column("prompt_tokens", "p99")),
    Statistic("longest prompt, tokens", 8192, 8192, _column("prompt_tokens", "most")),
    Statistic("prompt and answer, rank correlation", 0.2, 1, _value("anatomy.lengths.pair", "rank_correlation")),
    Statistic("longest session, turns", 11, math.inf, _value("anatomy.sessions.turns", "most_turns")),
    Statistic("KV positions written of those held", 0.3, 0.5, _value("usage.memory.blocks", "kv_utilization")),
)
"""What chatbot services publish: rates by hour, burstiness, lengths, conversations, and KV memory under an allocator
that reserves. A range where only that is published; "more than ten turns" is one without an end."""


def beside_published(findings: Sequence[Finding]) -> Finding:
    """`anatomy.published`: each published number, that of this log, and how far apart they are.

    Args:
      findings: of the anatomy and of usage. Those that were not computed leave their number out.

    Returns:
      A finding whose values are, by statistic, `published` (a number, or a range in words), `here` and `apart`.
    """
    found = {finding.key: finding for finding in findings if finding.missing is None}
    rows: dict[str, Value] = {}
    outside = []
    for statistic in STATISTICS:
        here = _read(statistic, found)
        if here is not None:
            apart = statistic.apart(here)
            rows[statistic.name] = {"published": _published(statistic), "here": here, "apart": apart}
            if abs(apart) > WITHIN:
                published = _published(statistic)
                said = published if isinstance(published, str) else figure(published)
                outside.append(f"{statistic.name}: {figure(here)}, published {said}")
    if not rows:
        return not_computed(_KEY, _SUBJECT, "none of the published numbers could be computed")
    met = len(rows) - len(outside)
    return Finding(
        key=_KEY,
        title=f"{met} of {len(rows)} numbers are within {WITHIN:.0%} of what is published of a chatbot service",
        rows=max(finding.rows for finding in found.values()),
        values=rows,
        because=tuple(outside),
    )


def _read(statistic: Statistic, found: Found) -> float | None:
    try:
        return float(statistic.here(found))
    except (KeyError, TypeError):
        return None


def _published(statistic: Statistic) -> float | str:
    """The number, or the range in words."""
    if statistic.low == statistic.high:
        return statistic.low
    return f"at least {statistic.low:g}" if math.isinf(statistic.high) else f"{statistic.low:g} to {statistic.high:g}"
