"""The currency of the engine: requests in, plans through, results back.

`Scheduler.plan` makes a `Plan`; an `Executor` (JAX or roofline) turns it into a `StepResult`; `Scheduler.apply` takes
both. A plan holds integers only, so two runs can be compared plan by plan.

Time inside the engine is an integer number of ticks (2**-60 s). Integers make the sum of k steps priced at once equal
to k steps priced one by one, bit for bit, and floats appear only in records. Next: `scheduler`, then `engine`.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from nanoserve.roofline.counts import StepCounts

TICKS_PER_S = 1 << 60


def to_ticks(seconds: float) -> int:
    """Seconds to engine ticks, exact for every finite float above 2**-8 s."""
    numerator, denominator = float(seconds).as_integer_ratio()
    return (numerator * TICKS_PER_S) // denominator


def to_seconds(ticks: int) -> float:
    """Engine ticks to seconds, correctly rounded."""
    return ticks / TICKS_PER_S


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
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
      pages: page ids, in order, covering `start + new_tokens` positions (`start + horizon` for decode).
      generated: output tokens that exist before this plan.
    """

    index: int
    slot: int
    start: int
    new_tokens: int
    samples: bool
    pages: tuple[int, ...]
    generated: int


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """One decision of the scheduler: what runs next, and for how many steps nothing about it can change.

    Attributes:
      step: index of its first step. kind: prefill, decode or mixed. horizon: k >= 1; k > 1 only for decode.
      counts: totals for the cost model.
      rows: makes the rows, decode rows first in join order, then chunks in admission order. Lazy, because a simulated
        step needs only the counts; valid until the plan is applied.
    """

    step: int
    kind: Kind
    horizon: int
    counts: StepCounts
    rows: Callable[[], tuple[Row, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class StepResult:
    """What came back from one plan.

    Attributes:
      duration_ticks: all of its steps. first_step_ticks: the first of them; the others grow linearly from it.
      tokens: request index -> its new tokens, `horizon` of them for a decode row and one for a sampled chunk; None where
        no tokens exist (simulation). logprobs: the same shape.
      host_ticks: part of the duration spent on the host while the device had nothing to do.
      executed_tokens: tokens that went through the layers, padding included, all steps; None: no padding.
      executed_kv_tokens: KV positions the attention gathered, padding included; None: no padding.
    """

    duration_ticks: int
    first_step_ticks: int
    tokens: Mapping[int, Sequence[int]] | None = None
    logprobs: Mapping[int, Sequence[float]] | None = None
    host_ticks: int = 0
    executed_tokens: int | None = None
    executed_kv_tokens: int | None = None


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
        """Forgets a request that finished or was preempted (its slot and pages may be reused)."""
        ...
