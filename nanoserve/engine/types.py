"""The currency of the engine: requests in, plans through, results back.

`Scheduler.plan` makes a `Plan`; an `Executor` (JAX or roofline) turns it into a `StepResult`; `Scheduler.apply` takes
both. A plan holds integers only, so two runs can be compared plan by plan.

What is made for every request or plan (`Request`, `Row`, `Plan`, `StepResult`) is never changed, but not a frozen
dataclass: one of those takes five times as long to make, and the simulator makes tens of thousands of plans a second.

Time inside the engine is an integer number of ticks (2**-60 s). Integers make the sum of k steps priced at once equal
to k steps priced one by one, bit for bit, and floats appear only in records. Next: `scheduler`, then `engine`.
"""

import dataclasses
import enum
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from nanoserve.roofline.counts import StepCounts

TICK_BITS = 60
TICKS_PER_S = 1 << TICK_BITS
_NONE_STOPPED: Mapping[int, int] = types.MappingProxyType({})


def to_ticks(seconds: float) -> int:
    """Seconds to engine ticks, exact for every finite float above 2**-8 s."""
    numerator, denominator = float(seconds).as_integer_ratio()
    return (numerator * TICKS_PER_S) // denominator


def to_seconds(ticks: int) -> float:
    """Engine ticks to seconds, correctly rounded."""
    return math.ldexp(ticks, -TICK_BITS)


class Kind(enum.StrEnum):
    """What a step does."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class MoveKind(enum.StrEnum):
    """Where KV goes that a plan moves: to the host, back from it, here from another engine, or to other pages."""

    OUT = "out"
    IN = "in"
    RECEIVE = "receive"
    COPY = "copy"


class FinishReason(enum.StrEnum):
    """Why a request left the engine."""

    LENGTH = "length"
    STOP = "stop"
    ABORTED = "aborted"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"


@dataclasses.dataclass(slots=True, kw_only=True)
class Request:
    """One request as the engine sees it: lengths and limits, no text.

    Attributes:
      index: row in the trace, and its identity everywhere.
      arrival_ticks: when it was sent (open loop: its scheduled arrival).
      prompt_tokens, output_tokens: prompt length, and the most tokens to generate.
      client, priority: for policies. session: for routers; None without one.
    """

    index: int
    arrival_ticks: int
    prompt_tokens: int
    output_tokens: int
    client: int = 0
    priority: int = 0
    session: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Arrived:
    """What a request brings that was begun in another engine: its KV is on the way here, by a move of kind `receive`.

    Attributes:
      kv_tokens: KV positions that were written there. generated: output tokens sampled there, at least 1.
    """

    kv_tokens: int
    generated: int


@dataclasses.dataclass(slots=True)
class Row:
    """One sequence's part in a plan.

    Attributes:
      index: request. slot: its place in the executor's device state (0 <= slot < max_seqs).
      start: KV positions already written. new_tokens: positions this step writes: of a decode row 1 in each step, and
        one more for each token that may be drafted for it.
      samples: the last new position is sampled from.
      pages: page ids, in order, covering `start + new_tokens` positions (`start + horizon` for decode). The scheduler's
        own list: read it before the plan is applied, never keep or change it.
      generated: output tokens that exist before this plan.
      admission: how often the request was admitted before. What is known of a slot's pages holds for one admission.
    """

    index: int
    slot: int
    start: int
    new_tokens: int
    samples: bool
    pages: Sequence[int]
    generated: int
    admission: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """KV of one sequence that goes somewhere before a plan's first step.

    Attributes:
      kind: which way. index: request. slot: its place in the executor's device state, from which it goes or to which
        it comes; the sequence's newest token belongs there again after a move to the device.
      pages: page ids in position order, from which or into which `tokens` KV positions are copied.
      tokens: KV positions.
      source: of a copy, the pages from which it is made; they may be another's from the next move on.
    """

    kind: MoveKind
    index: int
    slot: int
    pages: Sequence[int]
    tokens: int
    source: Sequence[int] = ()


@dataclasses.dataclass(slots=True)
class Plan:
    """One decision of the scheduler: what runs next, and for how many steps nothing about it can change.

    Attributes:
      step: index of its first step. kind: prefill, decode or mixed. horizon: k >= 1; k > 1 only for decode.
      counts: totals for the cost model.
      padding_rows: rows of each decode step that a static batch still computes for sequences that have all their
        tokens; in no other count.
      rows: makes the rows, decode rows first in join order, then chunks in admission order. Lazy, because a simulated
        step needs only the counts; valid until the plan is applied.
      moves: KV that is moved before the first step, in this order: all that goes out, whose pages may be given to
        others in this very plan, then all that comes.
    """

    step: int
    kind: Kind
    horizon: int
    counts: StepCounts
    rows: Callable[[], tuple[Row, ...]]
    padding_rows: int = 0
    moves: Sequence[Move] = ()


@dataclasses.dataclass(slots=True)
class StepResult:
    """What came back from one plan.

    Attributes:
      duration_ticks: all of its steps. first_step_ticks: the first of them; the others grow linearly from it.
      host_ticks: part of the duration spent on the host while the device had nothing to do.
      stopped: request index -> how many of its tokens of this plan count, for requests that hit a stop token; the rest
        of a horizon is discarded. Generated text itself stays with the executor.
      executed_tokens: tokens that went through the layers, padding included, all steps; None: no padding.
      executed_kv_tokens: KV positions the attention gathered, padding included; None: no padding.
      gained: of a plan whose decode rows verify drafts: request index -> tokens that it gained, 1 to `Row.new_tokens`,
        already cut at a stop token; an entry for every decode row. None where every row gains one token a step.
      ran: what ran where that is less than was planned: fewer tokens were drafted than there was room for.
    """

    duration_ticks: int
    first_step_ticks: int
    host_ticks: int = 0
    stopped: Mapping[int, int] = _NONE_STOPPED
    executed_tokens: int | None = None
    executed_kv_tokens: int | None = None
    gained: Mapping[int, int] | None = None
    ran: StepCounts | None = None

    def result(self) -> "StepResult":
        """Itself: what is known as soon as a plan is submitted is its own `Pending`."""
        return self

    def ready(self) -> bool:
        """Always."""
        return True

    @property
    def accepted_tokens(self) -> int:
        """Drafted tokens that were kept."""
        return 0 if self.gained is None else sum(self.gained.values()) - len(self.gained)

    def ticks_after(self, steps: int, horizon: int) -> int:
        """When the first `steps` of `horizon` steps were done, from the start of the plan; step times grow linearly."""
        if horizon == 1:
            return self.duration_ticks
        growth = self.duration_ticks - horizon * self.first_step_ticks  # horizon (horizon - 1) / 2 increments
        return steps * self.first_step_ticks + growth * steps * (steps - 1) // (horizon * (horizon - 1))


class Pending(Protocol):
    """A submitted plan."""

    def result(self) -> StepResult:
        """Blocks until the plan has run."""
        ...

    def ready(self) -> bool:
        """Whether `result` would not block."""
        ...


class Executor(Protocol):
    """Turns plans into results. `roofline_executor` and `jax_executor` implement it."""

    def submit(self, plan: Plan) -> Pending:
        """Starts a plan. Plans are submitted in order and resolved in order."""
        ...

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """How many decode steps of this composition *start* within `span_ticks` (at least 1); an estimate if measured.

        Args:
          counts: of a single decode step, the first.
          span_ticks: time until the next event, > 0; None where none is due, and only the executor itself may know of
            one.
        """
        ...

    def release(self, index: int) -> None:
        """Told once when a request has left the engine: its slot and pages may be reused."""
        ...
