"""What a step asks of a chip, in fourteen numbers: the only thing the cost model needs to know about a plan.

A `StepCounts` describes one plan: `steps` equal-composition steps in a row (its horizon). Every field is additive, so
fields may be Python integers (one plan) or integer arrays (a whole run, priced in one vectorised call); the code is the
same. Totals are over all `steps` of the plan. Never changed, but not a frozen dataclass: one of those takes six times
as long to make, and the simulator makes tens of thousands a second.

A decode row that verifies drafted tokens is still one decode row: what those tokens add is counted apart, so that a
step without them has zeros there.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from nanoserve.roofline.numeric import half, maximum, minimum

Count = Any  # int, or an integer array of one entry per plan


@dataclasses.dataclass(slots=True)
class StepCounts:
    """Totals of one plan.

    Attributes:
      steps: k, the device steps in the plan.
      decode_seqs: rows that decode in *each* step (B); decode tokens are `steps * decode_seqs`.
      decode_kv_tokens: sum over steps and rows of KV positions attended, the new token's included.
      decode_window_tokens: the same with each row's count capped at the model's sliding window.
      prefill_seqs: rows with a prompt chunk. prefill_tokens: their new tokens.
      prefill_pairs: query-key pairs under the causal mask: sum over chunks of c*past + c*(c+1)/2.
      prefill_window_pairs: the same within the sliding window.
      prefill_kv_tokens: KV positions that the chunks read: sum of past + c.
      prefill_window_kv_tokens: the same within the sliding window.
      sampled: rows through the output head and the sampler, all steps together.
      drafted_tokens: tokens that decode rows verify besides their own; only in plans of one step. Their KV positions
        are in `decode_kv_tokens`: a row reads each of its positions once for all of its tokens.
      drafted_pairs: query-key pairs of decode rows beyond `decode_kv_tokens`, one for each position that is read.
      drafted_window_pairs: the same beyond `decode_window_tokens`.
    """

    steps: Count = 1
    decode_seqs: Count = 0
    decode_kv_tokens: Count = 0
    decode_window_tokens: Count = 0
    prefill_seqs: Count = 0
    prefill_tokens: Count = 0
    prefill_pairs: Count = 0
    prefill_window_pairs: Count = 0
    prefill_kv_tokens: Count = 0
    prefill_window_kv_tokens: Count = 0
    sampled: Count = 0
    drafted_tokens: Count = 0
    drafted_pairs: Count = 0
    drafted_window_pairs: Count = 0

    @property
    def new_tokens(self) -> Count:
        """Tokens that pass through the layers, all steps together."""
        return self.steps * self.decode_seqs + self.drafted_tokens + self.prefill_tokens


def with_drafts(counts: StepCounts, rows: Iterable[tuple[int, int]], window_tokens: int | None = None) -> StepCounts:
    """The counts of a plan whose decode rows bring drafted tokens; what they say of chunks stays.

    Args:
      counts: of a plan of one step, with its decode rows and samples, with or without drafts.
      rows: of each decode row, its KV positions before the step and its tokens in it, drafted ones included.
      window_tokens: the model's sliding window.
    """
    drafted = read = seen = pairs = seen_pairs = 0
    for past, tokens in rows:
        drafted += tokens - 1
        read += past + tokens
        pairs += causal_pairs(past, tokens)
        if window_tokens is not None:
            seen += window_kv_tokens(past, tokens, window_tokens)
            seen_pairs += window_pairs(past, tokens, window_tokens)
    if window_tokens is None:
        seen, seen_pairs = read, pairs
    return dataclasses.replace(
        counts,
        decode_kv_tokens=read,
        decode_window_tokens=seen,
        sampled=counts.sampled - counts.drafted_tokens + drafted,
        drafted_tokens=drafted,
        drafted_pairs=pairs - read,
        drafted_window_pairs=seen_pairs - seen,
    )


def causal_pairs(past: Count, chunk: Count) -> Count:
    """Query-key pairs of a prompt chunk of `chunk` tokens after `past` tokens, under the causal mask."""
    return chunk * past + half(chunk * (chunk + 1))


def window_pairs(past: Count, chunk: Count, window: int) -> Count:
    """`causal_pairs` where each query sees at most `window` keys, itself included."""
    full = maximum(past + chunk - maximum(past, window), 0)  # queries whose window is already full
    growing = chunk - full
    return causal_pairs(past, growing) + full * window


def window_kv_tokens(past: Count, chunk: Count, window: int) -> Count:
    """KV positions a chunk reads when its first query sees at most `window` keys."""
    return chunk + minimum(past, window - 1)
