"""One admitted or waiting request: its progress, its slot, and the pages it holds."""

import dataclasses

from nanoserve.engine.types import MoveKind, Request


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the scheduler.

    While it prefills, `kv_tokens` and `generated` are plain counters. While it decodes they are implied by the cohort's
    step counter (see `cohort`), and the stored values are what they were when it joined.

    Attributes:
      request: what was asked for. index: its row in the trace.
      prefill_target: positions to write before a token can be sampled: the prompt, plus, after a preemption, the tokens
        that were already generated (recompute).
      kv_tokens: KV positions written. generated: output tokens sampled.
      pages: pages held, in position order. known_pages: how many of them the prefix cache was told of.
      returns: its KV is kept elsewhere, and comes by a move of this kind once it is admitted; None if it does not.
      slot: place in the executor's device state, -1 when not admitted.
      join: which membership in the cohort is current, 0 when not decoding.
      joined_step: the cohort's step when it joined.
      preemptions, last_token_ticks, max_stall_ticks: for its record.
      most_pages: pages held when it let go of the most. written_tokens: KV positions that were written in them.
    """

    request: Request
    prefill_target: int
    index: int = dataclasses.field(init=False)
    kv_tokens: int = 0
    generated: int = 0
    pages: list[int] = dataclasses.field(default_factory=list)
    known_pages: int = 0
    returns: MoveKind | None = None
    slot: int = -1
    join: int = 0
    joined_step: int = 0
    preemptions: int = 0
    last_token_ticks: int = -1
    max_stall_ticks: int = 0
    most_pages: int = 0
    written_tokens: int = 0

    def __post_init__(self):
        self.index = self.request.index

    @property
    def valid_tokens(self) -> int:
        """KV positions that are its own, its counters being up to date: not what was written after a stop token."""
        tokens = self.request.prompt_tokens + self.generated - 1
        return tokens if tokens < self.kv_tokens else self.kv_tokens


def pages_for(tokens: int, page_tokens: int) -> int:
    """Pages that hold `tokens` positions."""
    return -(-tokens // page_tokens)
