"""Who takes part in the step that is being planned, in totals for the cost model and in rows for an executor.

A step is the decoding cohort, or not, and chunks of prompts. Its counts cost O(chunks), whatever the cohort's size; its
rows, which a simulated step does not ask for, O(sequences). Next: `scheduler`, which composes it.
"""

from collections.abc import Mapping

from nanoserve.engine.cohort import DecodeCohort
from nanoserve.engine.sequence import Sequence
from nanoserve.engine.speculating import SpeculatingCohort
from nanoserve.engine.types import Kind, Row
from nanoserve.roofline.counts import StepCounts, window_kv_tokens, window_pairs

Chunk = tuple[Sequence, int, int]
"""A sequence, its past tokens, and how many of the next it prefills."""


class Composition:
    """The step that is being planned, until the plan is applied."""

    def __init__(self, cohort: DecodeCohort | SpeculatingCohort, window_tokens: int | None):
        """Makes a step of the cohort alone. `window_tokens`: the model's sliding window."""
        self.chunks: list[Chunk] = []
        self.decodes = True  # the cohort takes part
        self._cohort = cohort
        self._speculating = cohort if isinstance(cohort, SpeculatingCohort) else None
        self._window_tokens = window_tokens

    def kind(self) -> Kind:
        """What the step does; there must be somebody in it."""
        if not self.chunks:
            return Kind.DECODE
        return Kind.MIXED if self.decodes and self._cohort.members else Kind.PREFILL

    def counts(self) -> StepCounts:
        """Totals of one such step, without what decoding rows verify besides."""
        if self.decodes:
            rows = len(self._cohort.members)
            kv_tokens, window_tokens = self._cohort.attended(1)
        else:
            rows = kv_tokens = window_tokens = 0
        if not self.chunks:
            return StepCounts(1, rows, kv_tokens, window_tokens, 0, 0, 0, 0, 0, 0, rows)
        pairs = window = kv = window_kv = tokens = sampled = 0
        limit = self._window_tokens
        for sequence, past, new in self.chunks:
            end = past + new
            tokens += new
            pairs += new * (past + end + 1) // 2  # `causal_pairs`, without two calls for every chunk
            kv += end
            sampled += end == sequence.prefill_target
            if limit is not None:
                window += window_pairs(past, new, limit)
                window_kv += window_kv_tokens(past, new, limit)
        if limit is None:
            window, window_kv = pairs, kv
        chunks, sampled = len(self.chunks), rows + sampled
        return StepCounts(1, rows, kv_tokens, window_tokens, chunks, tokens, pairs, window, kv, window_kv, sampled)

    def lengthen(self, counts: StepCounts, steps: int) -> None:
        """Makes the counts of one decode step, which are in no plan yet, those of `steps` such steps in a row."""
        counts.steps, counts.sampled = steps, steps * counts.decode_seqs
        counts.decode_kv_tokens, counts.decode_window_tokens = self._cohort.attended(steps)

    def rows(self) -> tuple[Row, ...]:
        """Decode rows in the order of joining, then chunks in the order of admission."""
        cohort, members = self._cohort, self._cohort if self.decodes else ()
        drafts: Mapping[int, int] = {}
        if self._speculating is not None:
            drafts = {s.index: self._speculating.drafts_of(s) for s in members}
        decode = [
            Row(
                s.index,
                s.slot,
                cohort.kv_of(s),
                1 + drafts.get(s.index, 0),
                True,
                s.pages,
                cohort.generated_of(s),
                s.preemptions,
            )
            for s in members
        ]
        chunks = [
            Row(s.index, s.slot, past, new, past + new == s.prefill_target, s.pages, s.generated, s.preemptions)
            for s, past, new in self.chunks
        ]
        return (*decode, *chunks)
