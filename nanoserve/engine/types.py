"""The currency of the engine: requests in, plans through, results back.

`Scheduler.plan` makes a `Plan`; an `Executor` (JAX or roofline) turns it into a `StepResult`; `Scheduler.apply` takes
both. A plan holds integers only, so two runs can be compared plan by plan.

What is made for every request or plan (`Request`, `Plan`, `StepResult`) is never changed, but not a frozen dataclass:
one of those takes five times as long to make, and the simulator makes tens of thousands of plans a second.

Time inside the engine is an integer number of ticks (2**-60 s). Integers make the sum of k steps priced at once equal
to k steps priced one by one, bit for bit, and floats appear only in records. Next: `scheduler`, then `engine`.
"""

import dataclasses
import enum
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from nanoserve.roofline.counts import StepCounts
from nanoserve.specs.errors import ConfigError

_TICK_BITS = 60
TICKS_PER_S = 1 << _TICK_BITS
_NONE_STOPPED: Mapping[int, int] = types.MappingProxyType({})


def to_ticks(seconds: float) -> int:
    """Seconds to engine ticks, exact for every finite float above 2**-8 s."""
    numerator, denominator = float(seconds).as_integer_ratio()
    return (numerator * TICKS_PER_S) // denominator


def to_seconds(ticks: int) -> float:
    """Engine ticks to seconds, correctly rounded."""
    return math.ldexp(ticks, -_TICK_BITS)


class Kind(enum.StrEnum):
    """What a step does."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class FinishReason(enum.StrEnum):
    """Why a request left the engine."""

    LENGTH = "length"
    STOP = "stop"
    ABORTED = "aborted"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the scheduler may do in one step and with how much memory.

    Attributes:
      max_seqs: sequences that run at once (slots; vLLM: max_num_seqs).
      max_step_tokens: token budget of a step, decode and prefill together (vLLM: max_num_batched_tokens).
      prefill_chunk_tokens: prefill tokens in one step, all sequences together; None means the whole budget.
      page_tokens: tokens per page (vLLM: block size).
      num_pages: pages in the pool; None asks the memory model.
      hbm_utilization: share of device memory the memory model may plan with.
      free_page_watermark: share of the pool kept free when admitting, unless nothing runs.
      max_horizon_steps: most decode steps in one plan.
      max_context_tokens: prompt plus output limit; None means the model's.
      timeout_s: a request older than this is ended; None means never.
      batching: `mixed`: a step holds chunks and decoding sequences; `prefill_first`: one or the other, chunks first;
        `static`: requests are gathered into a batch, prefilled, and decoded until the last of them finishes.
      static_timeout_s: a static batch starts with fewer than `max_seqs` requests when the oldest has waited this long.
      interval_s: while something runs, the engine knows only of requests that had arrived by the last multiple of this;
        0 means that it looks before every step.
      chunking: `fixed`, or `adaptive`, which shrinks chunks where many decode and few wait (`engine.chunking`).
      decodes_per_prompt: for adaptive chunking: decoding sequences that weigh as much as one prompt that waits.
      policy, victim, admission: names in `engine.policy`: order of the queue, who is preempted, who may start.
      queue_limit: a request that finds so many waiting is refused; None means no limit.
      deadline_s: a first token is due this long after arrival; for policies that know of deadlines.
      allocator: `paged`, or `contiguous`: one run of pages for all that a request may need (`engine.runs`).
    """

    max_seqs: int = 256
    max_step_tokens: int = 2048
    prefill_chunk_tokens: int | None = None
    page_tokens: int = 16
    num_pages: int | None = None
    hbm_utilization: float = 0.9
    free_page_watermark: float = 0.01
    max_horizon_steps: int = 1024
    max_context_tokens: int | None = None
    timeout_s: float | None = None
    batching: Literal["mixed", "prefill_first", "static"] = "mixed"
    static_timeout_s: float = 1.0
    interval_s: float = 0.0
    chunking: Literal["fixed", "adaptive"] = "fixed"
    decodes_per_prompt: float = 16.0
    policy: str = "fcfs"
    victim: str = "youngest"
    admission: str = "watermark"
    queue_limit: int | None = None
    deadline_s: float | None = None
    allocator: Literal["paged", "contiguous"] = "paged"

    def __post_init__(self):
        for field in (
            "max_seqs",
            "max_step_tokens",
            "prefill_chunk_tokens",
            "page_tokens",
            "num_pages",
            "max_horizon_steps",
            "queue_limit",
        ):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigError(f"Engine.{field} = {value}: must be at least 1")
        if self.max_step_tokens < self.max_seqs:
            raise ConfigError(
                f"Engine.max_step_tokens = {self.max_step_tokens} is below Engine.max_seqs = {self.max_seqs}: every "
                "running sequence decodes one token a step. Raise the budget or lower max_seqs"
            )
        if not 0 <= self.free_page_watermark < 1:
            raise ConfigError(f"Engine.free_page_watermark = {self.free_page_watermark}: must be in [0, 1)")
        if not 0 < self.hbm_utilization <= 1:
            raise ConfigError(f"Engine.hbm_utilization = {self.hbm_utilization}: must be in (0, 1]")
        for field in ("timeout_s", "deadline_s"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"Engine.{field} = {value}: must be positive and finite, or None for none")
        for field in ("static_timeout_s", "interval_s"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ConfigError(f"Engine.{field} = {getattr(self, field)}: must be at least 0 and finite")
        if not 0 < self.decodes_per_prompt < math.inf:
            raise ConfigError(f"Engine.decodes_per_prompt = {self.decodes_per_prompt}: must be positive and finite")
        if self.policy == "deadline" and self.deadline_s is None:
            raise ConfigError("Engine.policy = 'deadline' needs Engine.deadline_s: when first tokens are due")


@dataclasses.dataclass(slots=True, kw_only=True)
class Request:
    """One request as the engine sees it: lengths and limits, no text.

    Attributes:
      index: row in the trace, and its identity everywhere.
      arrival_ticks: when it was sent (open loop: its scheduled arrival).
      prompt_tokens, output_tokens: prompt length, and the most tokens to generate.
      client, priority: for policies.
    """

    index: int
    arrival_ticks: int
    prompt_tokens: int
    output_tokens: int
    client: int = 0
    priority: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part in a plan.

    Attributes:
      index: request. slot: its place in the executor's device state (0 <= slot < max_seqs).
      start: KV positions already written. new_tokens: positions this step writes (1 for decode, in each step).
      samples: the last new position is sampled from.
      pages: page ids, in order, covering `start + new_tokens` positions (`start + horizon` for decode). The scheduler's
        own list: read it before the plan is applied, never keep or change it.
      generated: output tokens that exist before this plan.
    """

    index: int
    slot: int
    start: int
    new_tokens: int
    samples: bool
    pages: Sequence[int]
    generated: int


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
    """

    step: int
    kind: Kind
    horizon: int
    counts: StepCounts
    rows: Callable[[], tuple[Row, ...]]
    padding_rows: int = 0


@dataclasses.dataclass(slots=True)
class StepResult:
    """What came back from one plan.

    Attributes:
      duration_ticks: all of its steps. first_step_ticks: the first of them; the others grow linearly from it.
      stopped: request index -> how many of its tokens of this plan count, for requests that hit a stop token; the rest
        of a horizon is discarded. Generated text itself stays with the executor.
      host_ticks: part of the duration spent on the host while the device had nothing to do.
      executed_tokens: tokens that went through the layers, padding included, all steps; None: no padding.
      executed_kv_tokens: KV positions the attention gathered, padding included; None: no padding.
    """

    duration_ticks: int
    first_step_ticks: int
    stopped: Mapping[int, int] = _NONE_STOPPED
    host_ticks: int = 0
    executed_tokens: int | None = None
    executed_kv_tokens: int | None = None

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


class Executor(Protocol):
    """Turns plans into results. `roofline_executor` and `jax_executor` implement it."""

    def submit(self, plan: Plan) -> Pending:
        """Starts a plan. Plans are submitted in order and resolved in order."""
        ...

    def steps_before(self, counts: StepCounts, span_ticks: int) -> int:
        """How many decode steps of this composition *start* within `span_ticks` (at least 1); an estimate if measured.

        Args:
          counts: of a single decode step, the first.
          span_ticks: time until the next event, > 0.
        """
        ...

    def release(self, index: int) -> None:
        """Told once when a request has left the engine: its slot and pages may be reused."""
        ...
