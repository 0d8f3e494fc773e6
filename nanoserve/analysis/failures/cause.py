"""A possible cause of what goes wrong: how much it explains, how sure that is, and what would test it.

Every cause is scored in one unit, the share of the service that is lost to it: `explained` is the loss (`loss`) that
its mechanism accounts for, as a mean over all requests, and `strength`, 0 to 1, how surely the logs show that mechanism
at work. The score is their product. `pending` is a share of the machine that is gone before any request felt it: a leak
has to be named before it is too late, so the larger of the two counts. A cause is named from two in a thousand on, with
a strength of at least a half: less than that is told, and not blamed.

Two causes may explain the same failure, either of which would have spared it without the other. Next: `hypotheses`,
`causes`.
"""

import dataclasses
from collections.abc import Mapping

from nanoserve.analysis.finding import Finding, Value

NAMED_SCORE = 0.002
NAMED_STRENGTH = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    """One hypothesis, weighed.

    Attributes:
      name: short and stable. says: what it is, in words that can stand in a sentence.
      explained: share of the service that is lost to it, 0 to 1. strength: how sure, 0 to 1.
      pending: share of the machine that is gone, mean over the log.
      why_for, why_against: sentences of evidence, with figures.
      bindings: lines of a config that would take it away, `Class.field` -> value: what a replay tries. Empty where no
        config can.
      values: the figures behind it.
      missing: why it could not be weighed; None where it was.
    """

    name: str
    says: str
    explained: float = 0.0
    pending: float = 0.0
    strength: float = 0.0
    why_for: tuple[str, ...] = ()
    why_against: tuple[str, ...] = ()
    bindings: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    missing: str | None = None

    @property
    def score(self) -> float:
        """Share of the service, or of its machine, that is lost to it for sure."""
        return max(self.explained, self.pending) * self.strength

    @property
    def named(self) -> bool:
        """Whether it explains enough, surely enough."""
        return self.score >= NAMED_SCORE and self.strength >= NAMED_STRENGTH

    def finding(self, rows: int) -> Finding:
        """The finding `causes.NAME`."""
        return Finding(
            key=f"causes.{self.name}",
            title=f"{self.says[0].upper()}{self.says[1:]}: {self._verdict()}",
            rows=0 if self.missing else rows,
            values={} if self.missing else self._values(),
            missing=self.missing,
            because=(*(f"For: {each}" for each in self.why_for), *(f"Against: {each}" for each in self.why_against)),
        )

    def _verdict(self) -> str:
        if self.missing is not None:
            return "not weighed"
        if not self.named:
            return f"not named, {self.score:.2%}"
        if self.pending > self.explained:
            return f"{self.pending:.1%} of it on average"
        return f"{self.explained:.2%} of the service"

    def _values(self) -> dict[str, Value]:
        return {
            "score": self.score,
            "explained": self.explained,
            "pending": self.pending,
            "strength": self.strength,
            "named": self.named,
            "bindings": dict(self.bindings),
            **self.values,
        }


@dataclasses.dataclass(kw_only=True)
class Pleading:
    """A hypothesis while it is being weighed: sentences for and against, as they are found.

    Attributes:
      name, says: as in `Cause`.
    """

    name: str
    says: str
    why_for: list[str] = dataclasses.field(default_factory=list)
    why_against: list[str] = dataclasses.field(default_factory=list)

    def weigh(self, speaks_for: bool, sentence: str) -> None:
        """Puts a sentence on the side that it speaks for."""
        (self.why_for if speaks_for else self.why_against).append(sentence)

    def missing(self, why: str) -> Cause:
        """The cause, which could not be weighed."""
        return Cause(name=self.name, says=self.says, missing=why)

    def cause(
        self,
        *,
        explained: float,
        strength: float,
        bindings: Mapping[str, Value],
        values: Mapping[str, Value],
        pending: float = 0.0,
    ) -> Cause:
        """The cause, with both sides; arguments as in `Cause`."""
        return Cause(
            name=self.name,
            says=self.says,
            explained=explained,
            pending=pending,
            strength=strength,
            why_for=tuple(self.why_for),
            why_against=tuple(self.why_against),
            bindings=bindings,
            values=values,
        )
