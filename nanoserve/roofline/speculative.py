"""Verification of drafted tokens: each row checks k of them and its own next one in a single step.

A row brings k + 1 tokens, which all go through the layers and the head, and attend causally; its KV is read once for
all of them by a decode kernel. So while a step waits for memory, verifying costs little more than decoding one token.
What drafting costs is another model's steps (`SpeculationPricer`); drafts that are looked up cost the device nothing.

Next: `ops`, whose operations these are; `nanoserve.executors.speculating_roofline`, which prices runs with them.
Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023, sections 2.1 and 3.1.
"""

import dataclasses

from nanoserve.roofline.counts import Count, StepCounts, causal_pairs, window_kv_tokens, window_pairs
from nanoserve.roofline.numeric import Number
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


def verify_counts(step: Verification, window_tokens: int | None = None) -> StepCounts:
    """Returns the counts of a step that verifies.

    Args:
      step: what its rows bring. window_tokens: the model's sliding window.
    """
    past, queries = step.past_tokens, step.draft_tokens + 1
    positions, pairs = past + queries, causal_pairs(past, queries)
    seen, seen_pairs = positions, pairs
    if window_tokens is not None:
        seen, seen_pairs = window_kv_tokens(past, queries, window_tokens), window_pairs(past, queries, window_tokens)
    return StepCounts(
        decode_seqs=step.rows,
        decode_kv_tokens=step.rows * positions,
        decode_window_tokens=step.rows * seen,
        sampled=step.tokens,
        drafted_tokens=step.rows * step.draft_tokens,
        drafted_pairs=step.rows * (pairs - positions),
        drafted_window_pairs=step.rows * (seen_pairs - seen),
    )


def verify_ops(model: ModelSpec, cluster: ClusterSpec, precision: Precision, step: Verification) -> tuple[Op, ...]:
    """Returns the operations of a step that verifies; with no drafted tokens, those of a decode step.

    Raises:
      ConfigError: unknown dtype or mesh axis.
    """
    return step_ops(model, cluster, precision, verify_counts(step, model.sliding_window_tokens))


def expected_tokens(acceptance: Number, draft_tokens: int) -> Number:
    """Returns how many tokens a row gains in a step that verifies `draft_tokens`.

    Args:
      acceptance: chance that a drafted token is kept once those before it are, independent of them; below 1.
      draft_tokens: k.

    Source: Leviathan et al., equation 1.
    """
    return (1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance)
