"""Calls of a run that speculates: every plan is one verification, prompt chunks included.

A decode row brings its newest token and the guesses of a drafter; the target samples after each of them, and the row
gains the guesses that agree with it and the token that follows them (`model.verify` says why no token ever differs).
Because any number of tokens a row goes through one program, there is one for each number of tokens, and nothing else.

Next: `drafting` (who guesses), `step_calls` (the calls of other runs), `engine.speculating` (who may guess how many).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nanoserve.engine.types import Plan, Row
from nanoserve.executors.arrays import Verified
from nanoserve.executors.buckets import bucket, geometric_ladder
from nanoserve.executors.drafting import Drafter
from nanoserve.executors.step_calls import Call, Device
from nanoserve.model.step import Stepped
from nanoserve.roofline.counts import StepCounts, with_drafts

_LEAST_TOKENS = 8  # of a program: what fewer would save is less than a program is worth


class VerifyingCalls:
    """Exchanges an executor's `step_calls.StepCalls` for verification of what a drafter guesses."""

    def __init__(
        self,
        executor: Device,
        drafter: Drafter,
        verify: Callable[..., Stepped],
        *,
        most_tokens: int,
        row_tokens: int,
        window_tokens: int | None = None,
    ):
        """Compiles nothing yet.

        Args:
          executor: of the target. drafter: who guesses. verify: the target's entry point.
          most_tokens: of one step. row_tokens: of one decode row. window_tokens: the target's, for the counts.
        """
        self.drafter = drafter
        self._executor, self._verify = executor, verify
        self._row_tokens, self._window_tokens = row_tokens, window_tokens
        self._ladder = tuple(rung for rung in geometric_ladder(most_tokens, 2) if rung >= _LEAST_TOKENS) or (
            most_tokens,
        )

    @property
    def programs(self) -> int:
        """How many programs `warm_up` compiles."""
        return len(self._ladder) + self.drafter.programs

    def dispatch(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row]) -> Call:
        """Guesses, then starts the verification and the chunks."""
        book = self._executor.book
        guesses = self.drafter.propose(decode, book) if decode else []
        rows = [
            Verified(row, [*book.slice(row.index, row.start, 1), *guess], 1 + len(guess))
            for row, guess in zip(decode, guesses, strict=True)
        ]
        rows += [Verified(row, book.slice(row.index, row.start, row.new_tokens), int(row.samples)) for row in chunks]
        padded = bucket(self._ladder, sum(len(row.tokens) for row in rows) + plan.padding_rows)
        outputs = self._call(rows, padded)
        if chunks:
            self.drafter.chunks(chunks, book)
        return Call(
            outputs,
            padded,
            book=lambda tokens, logprobs: self._booked(plan.counts, rows, len(decode), tokens, logprobs),
            gathered=lambda: self._gathered_kv_tokens(rows, padded),
        )

    def warm_up(self) -> Iterator[str]:
        """Compiles and runs every program once on padding rows; yields the name of each when it is done."""
        for tokens in self._ladder:
            self._call((), tokens)
            yield f"verify[{tokens}]"
        yield from self.drafter.warm_up(self._executor.book)

    def on(self, device: Device) -> None:
        """None: the drafter keeps state on this one."""

    def release(self, index: int) -> None:
        """Forgets what the drafter knows of a request."""
        self.drafter.release(index)

    def _call(self, rows: Sequence[Verified], padded: int) -> tuple:
        executor = self._executor
        samples = min(padded, executor.max_seqs * self._row_tokens)
        return executor.run(self._verify, executor.arrays.verify(rows, padded, samples))

    def _booked(
        self, counts: StepCounts, rows: Sequence[Verified], decoding: int, tokens: np.ndarray, logprobs: np.ndarray
    ) -> Mapping[str, Any]:
        """Books what every row keeps of its samples; returns fields of the result."""
        gained, stopped, place = {}, {}, 0
        for number, (row, brought, samples) in enumerate(rows):
            new, place = slice(place, place + samples), place + samples
            if not samples:
                continue
            kept = new.start + _agreeing(brought[1:], tokens[new]) + 1 if number < decoding else new.stop
            ours = slice(new.start, kept)
            ended = self._executor.book.append(row.index, tokens[ours].tolist(), logprobs[ours].tolist())
            if ended is not None:
                stopped[row.index] = ended
            if number < decoding:
                gained[row.index] = kept - new.start if ended is None else ended
        ran = with_drafts(counts, ((r.row.start, len(r.tokens)) for r in rows[:decoding]), self._window_tokens)
        return {"stopped": stopped, "gained": gained, "ran": ran}

    def _gathered_kv_tokens(self, rows: Sequence[Verified], padded: int) -> int | None:
        q_lens = np.array([len(row.tokens) for row in rows], np.int64)
        kv_lens = np.array([row.row.start for row in rows], np.int64) + q_lens
        return self._executor.ledger(np.zeros(0, np.int64), kv_lens, q_lens, padded)


def _agreeing(guesses: Sequence[int], tokens: np.ndarray) -> int:
    """How many guesses, from the first on, are the tokens sampled in their places."""
    wrong = (place for place, guess in enumerate(guesses) if guess != tokens[place])
    return next(wrong, len(guesses))
