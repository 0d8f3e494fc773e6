"""Verification of drafted tokens: each row checks k of them and its own next one in a single step.

A row brings k + 1 tokens, which all go through the layers and the head, and attend causally; its KV is read once for
all of them by a decode kernel. So while a step waits for memory, verifying costs little more than decoding one token.
What drafting costs is another model's steps. The engine does not verify yet; a study or a frontier can price it.

Next: `ops`, whose operations these are. Source: Leviathan et al., "Fast Inference from Transformers via Speculative
Decoding", 2023, sections 2.1 and 3.1.
"""

import dataclasses

from nanoserve.roofline.counts import Count, StepCounts, causal_pairs
from nanoserve.roofline.numeric import Number, minimum
from nanoserve.roofline.op import Op
from nanoserve.roofline.ops import step_ops
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A step of rows that verify; numbers or arrays.

    Attributes:
      rows: sequences. past_tokens: KV positions of each before the step. draft_tokens: k, that each row checks.
    """

    rows: Count
    past_tokens: Count
    draft_tokens: Count

    @property
    def tokens(self) -> Count:
        """New tokens of all rows."""
        return self.rows * (self.draft_tokens + 1)


def verify_ops(model: ModelSpec, cluster: ClusterSpec, precision: Precision, step: Verification) -> tuple[Op, ...]:
    """Returns the operations of a step that verifies; with no drafted tokens, those of a decode step.

    In a sliding window, a row's later tokens are taken to see as far back as its first, which is k positions too many.

    Raises:
      ConfigError: unknown dtype or mesh axis.
    """
    products = step_ops(model, cluster, precision, StepCounts(decode_seqs=step.tokens, sampled=step.tokens))
    return tuple(
        _attention(model, cluster, precision, step) if op.name == "attention_decode" else op for op in products
    )


def expected_tokens(acceptance: Number, draft_tokens: int) -> Number:
    """Returns how many tokens a row gains in a step that verifies `draft_tokens`.

    Args:
      acceptance: chance that a drafted token is kept once those before it are, independent of them; below 1.
      draft_tokens: k.

    Source: Leviathan et al., equation 1.
    """
    return (1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance)


def _attention(model: ModelSpec, cluster: ClusterSpec, precision: Precision, step: Verification) -> Op:
    """Decode attention that reads each row's positions once and computes every token's pairs."""
    window, queries = model.sliding_window_tokens, step.draft_tokens + 1
    shown = step.past_tokens if window is None else minimum(step.past_tokens, window - 1)
    positions, pairs = (
        [step.rows * of_one(past) for past in (step.past_tokens, shown)]
        for of_one in (lambda past: past + queries, lambda past: causal_pairs(past, queries))
    )
    reads, computes, writes = (
        _decode(
            model, cluster, precision, StepCounts(decode_seqs=rows, decode_kv_tokens=full, decode_window_tokens=seen)
        )
        for rows, (full, seen) in ((step.rows, positions), (step.rows, pairs), (step.tokens, positions))
    )
    return dataclasses.replace(
        reads, flops=computes.flops, kv_write_bytes=writes.kv_write_bytes, activation_bytes=writes.activation_bytes
    )


def _decode(model: ModelSpec, cluster: ClusterSpec, precision: Precision, counts: StepCounts) -> Op:
    return next(op for op in step_ops(model, cluster, precision, counts) if op.name == "attention_decode")
