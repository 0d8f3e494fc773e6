"""The sequences that decode together and verify drafted tokens: each gains one token a step, or several.

It has the face of `cohort.DecodeCohort`, and takes its place where the config asks for drafts. Members no longer move
in step, so everything is counted member by member, and a plan has one step. A member that may draft j tokens brings
1 + j into the step: its newest token, whose KV is not written yet, and the guesses. Of these the executor keeps the
longest part that the model itself would have chosen, and its next token after them.

Invariants: a member never drafts past its last token (`j <= tokens left - 1`), so it never wants more pages than its
worst case; it drafts only into pages that are free once every member has the page of its next token, so a guess
preempts nobody. Pages that guesses were written to stay with the member: it needs them next.

Next: `scheduler`, which drives it; `nanoserve.executors.speculating_jax` and `speculating_roofline`, which say what
was gained. Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023, algorithm 1.
"""

from collections.abc import Iterator, Mapping

from nanoserve.engine.cohort import DecodeCohort
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.pages import Pool
from nanoserve.engine.sequence import Sequence, pages_for
from nanoserve.roofline.counts import StepCounts, with_drafts


class SpeculatingCohort:
    """Decoding sequences, each with counters of its own."""

    def __init__(self, page_tokens: int, draft_tokens: int, window_tokens: int | None = None):
        """Makes an empty cohort.

        Args:
          page_tokens: tokens per page. draft_tokens: most drafted tokens of a member in one step.
          window_tokens: the model's sliding window, or None.
        """
        self.page_tokens = page_tokens
        self.draft_tokens = draft_tokens
        self.window_tokens = window_tokens
        self.members: dict[int, Sequence] = {}  # by request index, in join order
        self._joins = 0

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.members.values())

    @property
    def kv_tokens(self) -> int:
        """KV positions written by all members."""
        return sum(sequence.kv_tokens for sequence in self)

    def kv_of(self, sequence: Sequence) -> int:
        """KV positions written by one member."""
        return sequence.kv_tokens

    def generated_of(self, sequence: Sequence) -> int:
        """Output tokens of one member."""
        return sequence.generated

    def drafts_of(self, sequence: Sequence) -> int:
        """Tokens that may be drafted for a member in the next step: what k, its length and its pages allow."""
        left = sequence.request.output_tokens - sequence.generated
        room = len(sequence.pages) * self.page_tokens - sequence.kv_tokens
        return min(self.draft_tokens, left - 1, room - 1)

    def join(self, sequence: Sequence) -> None:
        """Adds a sequence that has sampled its first token and wants at least one more."""
        self._joins += 1
        sequence.join = self._joins
        self.members[sequence.index] = sequence

    def leave(self, sequence: Sequence) -> None:
        """Removes a member."""
        del self.members[sequence.index]
        sequence.join = 0

    def steps_to_change(self) -> int:
        """One: nobody knows beforehand what a step gains."""
        return 1

    def reserve(self, pool: Pool, steps: int) -> int:
        """Gives every member the page of its next token, or nobody; then those of their drafts, as far as pages go.

        Returns:
          `steps`, or 0 when not all members can take the next one.
        """
        missing = [(sequence, self._missing(sequence, 1)) for sequence in self]
        if sum(count for _, count in missing) > pool.free_count:
            return 0
        for sequence, count in missing:
            sequence.pages += pool.alloc(count)
        for sequence in self:
            left = sequence.request.output_tokens - sequence.generated
            wanted = self._missing(sequence, min(left, 1 + self.draft_tokens))
            sequence.pages += pool.alloc(min(wanted, pool.free_count))
        return steps

    def short(self) -> tuple[Sequence, int]:
        """Of the members that lack the page of their next token, the last to join, and the pages that all lack."""
        missing = [(sequence, count) for sequence in self if (count := self._missing(sequence, 1))]
        return missing[-1][0], sum(count for _, count in missing)

    def reserve_for(self, pool: Pool, late: Sequence) -> None:
        """Gives a member that joined after pages were reserved the page of its next token; there must be one."""
        late.pages += pool.alloc(self._missing(late, 1))

    def attended(self, steps: int) -> tuple[int, int]:
        """KV positions attended in the next step without drafts, by all members: in full, and within the window.

        `steps` is 1, as everywhere here. What drafts add to a plan is said by `with_drafts`.
        """
        full = sum(sequence.kv_tokens + 1 for sequence in self)
        window = self.window_tokens
        return full, full if window is None else sum(min(sequence.kv_tokens + 1, window) for sequence in self)

    def with_drafts(self, counts: StepCounts) -> StepCounts:
        """The counts of a plan in which all members decode, with what they may draft."""
        rows = ((sequence.kv_tokens, 1 + self.drafts_of(sequence)) for sequence in self)
        return with_drafts(counts, rows, self.window_tokens)

    def advance(self, steps: int, gained: Mapping[int, int] | None) -> list[Sequence]:
        """Books what a step gained and removes the members that have all their tokens.

        Args:
          steps: 1. gained: request index -> tokens, of every member, at least 1 each; None: 1 each.

        Returns:
          The finished members, in join order.
        """
        gained = gained or dict.fromkeys(self.members, 1)
        finished = []
        for sequence in tuple(self):
            tokens = gained[sequence.index]
            sequence.kv_tokens += tokens
            sequence.generated += tokens
            if sequence.generated == sequence.request.output_tokens:
                self.leave(sequence)
                finished.append(sequence)
        return finished

    def youngest(self) -> Sequence:
        """The member that joined last: the one to preempt under first come, first served."""
        return next(reversed(self.members.values()))

    def _missing(self, sequence: Sequence, tokens: int) -> int:
        """Pages that a member lacks for its next `tokens` positions."""
        return max(0, pages_for(sequence.kv_tokens + tokens, self.page_tokens) - len(sequence.pages))


Cohort = DecodeCohort | SpeculatingCohort
"""Who decodes together: all in step, or each at its own pace."""


def cohort_for(config: EngineConfig, window_tokens: int | None) -> Cohort:
    """An empty cohort of the kind that the config asks for."""
    if config.draft == "none":
        return DecodeCohort(config.page_tokens, window_tokens)
    return SpeculatingCohort(config.page_tokens, config.draft_tokens, window_tokens)
