"""Which compiled program runs a plan, and how its tokens are booked: one token a row in every step.

A decode plan is one call of `decode`, or of `decode_loop` for a horizon; chunks are `prefill`; both together are
`mixed`. `verifying` has the calls of runs that speculate, `one_shape` those of batch-invariant ones. Next:
`jax_executor`, which times calls and keeps the state.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nanoserve.engine.types import Plan, Row
from nanoserve.model.step import DecodeRows

if TYPE_CHECKING:
    import jax

    from nanoserve.executors.arrays import Ladders, RowArrays
    from nanoserve.executors.tokens import TokenBook
    from nanoserve.model.step import Steps

KvLedger = Callable[[np.ndarray, np.ndarray, np.ndarray, int], int | None]
"""(decode KV lengths with padding, chunk KV lengths, chunk lengths, padded chunk tokens) -> positions gathered in a
step, or None where the implementation does not say."""


class Device(Protocol):
    """What calls need of an executor (`jax_executor.JaxExecutor`)."""

    steps: "Steps"
    arrays: "RowArrays"
    ladders: "Ladders"
    book: "TokenBook"
    ledger: KvLedger
    max_seqs: int

    def run(self, step: Callable[..., tuple], *arrays, **options) -> tuple:
        """Calls an entry point of the model with its weights and state; keeps the new state, returns the rest."""
        ...


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that the device works on.

    Attributes:
      outputs: sampled tokens and their log-probabilities.
      executed_tokens: that go through the layers, padding included.
      book: puts them into the token book, once they are on the host; returns fields of the `StepResult`.
      gathered: KV positions that attention gathers, or None where its implementation does not say.
    """

    outputs: "tuple[jax.Array, jax.Array]"
    executed_tokens: int
    book: Callable[[np.ndarray, np.ndarray], Mapping[str, Any]]
    gathered: Callable[[], int | None]


class Calls(Protocol):
    """The calls of an executor: what a run that speculates exchanges."""

    @property
    def programs(self) -> int:
        """How many programs `warm_up` compiles."""
        ...

    def dispatch(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row]) -> Call:
        """Starts a plan."""
        ...

    def warm_up(self) -> Iterator[str]:
        """Compiles and runs every program once on padding rows; yields the name of each when it is done."""
        ...

    def on(self, device: Device) -> "Calls | None":
        """The same calls for another device, which has these programs; None where they keep state of their own."""
        ...

    def release(self, index: int) -> None:
        """A request left."""
        ...


class StepCalls:
    """Calls of steps in which every row gains one token."""

    def __init__(self, executor: Device):
        """For an executor, whose arrays, ladders and state it uses."""
        self._executor = executor

    @property
    def programs(self) -> int:
        """How many programs `warm_up` compiles."""
        return self._executor.ladders.programs

    def dispatch(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row]) -> Call:
        """Starts a plan."""
        rows, tokens = shape = self._shape(plan, decode, chunks)
        return Call(
            self._outputs(plan, decode, chunks, shape),
            plan.horizon * rows + tokens,
            book=lambda tokens, logprobs: {"stopped": self._booked(plan, decode, chunks, rows, tokens, logprobs)},
            gathered=lambda: self._gathered_kv_tokens(plan.horizon, decode, chunks, shape),
        )

    def warm_up(self) -> Iterator[str]:
        """Compiles and runs every program once on padding rows; yields the name of each when it is done."""
        executor, ladders = self._executor, self._executor.ladders
        for rows in ladders.decode_rows:
            decode = executor.arrays.decode((), rows)
            executor.run(executor.steps.decode, decode)
            yield f"decode[{rows}]"
            if ladders.loop_steps > 1:
                self._loop(decode, 1)
                yield f"decode_loop[{rows}]"
        for tokens in ladders.prefill_tokens:
            prefill = executor.arrays.prefill((), tokens, executor.book)
            executor.run(executor.steps.prefill, prefill)
            yield f"prefill[{tokens}]"
            for rows in ladders.mixed_rows:
                executor.run(executor.steps.mixed, executor.arrays.decode((), rows), prefill)
                yield f"mixed[{rows}, {tokens}]"

    def on(self, device: Device) -> "StepCalls":
        """The same calls for another device."""
        return type(self)(device)

    def release(self, index: int) -> None:
        """Nothing is held."""

    def _shape(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row]) -> tuple[int, int]:
        """Decode rows and chunk tokens of the program, padding included; 0 of what a plan has none of."""
        asked = len(decode) + plan.padding_rows if decode else 0
        return self._executor.ladders.shape(asked, plan.counts.prefill_tokens if chunks else 0)

    def _outputs(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row], shape: tuple[int, int]) -> tuple:
        executor, arrays = self._executor, self._executor.arrays
        rows, tokens = shape
        if not tokens:
            padded = arrays.decode(decode, rows)
            return self._loop(padded, plan.horizon) if plan.horizon > 1 else executor.run(executor.steps.decode, padded)
        prefill = arrays.prefill(chunks, tokens, executor.book)
        if not rows:
            return executor.run(executor.steps.prefill, prefill)
        return executor.run(executor.steps.mixed, arrays.decode(decode, rows), prefill)

    def _loop(self, decode: DecodeRows, steps: int) -> tuple:
        executor = self._executor
        options = {"max_steps": executor.ladders.loop_steps}
        return executor.run(executor.steps.decode_loop, decode, np.int32(steps), **options)

    def _booked(
        self,
        plan: Plan,
        decode: Sequence[Row],
        chunks: Sequence[Row],
        first_chunk: int,
        tokens: np.ndarray,
        logprobs: np.ndarray,
    ) -> dict[int, int]:
        """Books sampled rows, chunks from column `first_chunk` on; returns how many tokens count of who stopped."""
        columns, rows = [*range(len(decode))], [*decode]
        for place, row in enumerate(chunks):
            if row.samples:
                columns.append(first_chunk + place)
                rows.append(row)
        new, scores = (np.atleast_2d(each)[: plan.horizon, columns].T.tolist() for each in (tokens, logprobs))
        append, stopped = self._executor.book.append, {}
        for row, ids, logprobs_of_row in zip(rows, new, scores, strict=True):
            kept = append(row.index, ids, logprobs_of_row)
            if kept is not None:
                stopped[row.index] = kept
        return stopped

    def _gathered_kv_tokens(
        self, horizon: int, decode: Sequence[Row], chunks: Sequence[Row], shape: tuple[int, int]
    ) -> int | None:
        """KV positions that attention gathers in all steps of a plan, as the implementation says."""
        rows, tokens = shape
        decode_lens = np.zeros(rows, np.int64)
        decode_lens[: len(decode)] = [row.start + 1 for row in decode]
        kv_lens = np.array([row.start + row.new_tokens for row in chunks], np.int64)
        q_lens = np.array([row.new_tokens for row in chunks], np.int64)
        total = 0
        for step in range(horizon):
            lens = np.where(decode_lens > 0, decode_lens + step, 0)
            gathered = self._executor.ledger(lens, kv_lens, q_lens, tokens)
            if gathered is None:
                return None
            total += gathered
        return total
