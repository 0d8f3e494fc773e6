"""Runs plans with JAX: rows of a plan become padded arrays, one compiled call, and tokens on the host.

All programs are compiled by `warm_up` for a grid of buckets (`Ladders`); after that nothing compiles. The device keeps
KV pages and last tokens, so a decode step sends only integers, and a horizon of k steps is one call. Time is wall time.

Next: `step_calls` (which program runs a plan), `arrays` (from rows to arrays), `nanoserve.model.step` (the programs).
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from nanoserve.engine.types import TICKS_PER_S, Kind, Plan, StepResult
from nanoserve.executors.arrays import Ladders, RequestSampling, RowArrays
from nanoserve.executors.compiling_ahead import warmed_up
from nanoserve.executors.host_pages import HostPages
from nanoserve.executors.step_calls import Call, Calls, KvLedger, StepCalls
from nanoserve.executors.tokens import TokenBook
from nanoserve.model.params import Params
from nanoserve.model.step import DeviceState, Steps
from nanoserve.roofline.counts import StepCounts

_EMA_WEIGHT = 0.2  # of the newest decode step in the estimate of the next


class JaxExecutor:
    """An `engine.types.Executor` over compiled steps."""

    def __init__(
        self,
        *,
        steps: Steps,
        params: Params,
        state: DeviceState,
        ladders: Ladders,
        book: TokenBook,
        sampling: RequestSampling,
        key: jax.Array,
        max_seqs: int,
        attention: str = "",
        ledger: KvLedger = lambda decode_lens, kv_lens, q_lens, tokens: None,
        put: Callable[[Any], Any] = lambda tree: tree,
    ):
        """Takes over `state`; nothing compiles until `warm_up`.

        Args:
          steps: entry points of the model. params: its weights, placed. state: fresh device state.
          ladders: what to compile. book: token ids. sampling: per request. key: of the run.
          max_seqs: slots, as in `state`. attention: which implementation attends, and why, for the log.
          ledger: what attention really gathers, for the padding account.
          put: places a tree of host arrays where the steps want them.
        """
        self.steps, self.params, self.state = steps, params, state
        self.ladders, self.book, self.key = ladders, book, key
        self.max_seqs, self.attention = max_seqs, attention
        self.ledger = ledger
        self.put = put
        self.arrays = RowArrays(ladders, sampling, max_seqs)
        self.calls: Calls = StepCalls(self)
        self.movers: list[HostPages] = []  # one for every pool with the same pages; none where nothing is moved
        self._decode_step_s = 0.0

    # ---- Executor ----

    def submit(self, plan: Plan) -> "_Running":
        """Dispatches a plan; the device works while the host returns."""
        begin = time.perf_counter_ns()
        for mover in self.movers if plan.moves else ():
            mover.move(plan.moves, self.book.newest)
        rows = plan.rows()
        decode, chunks = rows[: plan.counts.decode_seqs], rows[plan.counts.decode_seqs :]
        self.arrays.sync(rows)
        call = self.calls.dispatch(plan, decode, chunks)
        dispatched = time.perf_counter_ns()
        # While the device works: its results set out for the host by themselves, and padding is counted.
        for array in call.outputs:
            array.copy_to_host_async()
        return _Running(self, plan, call, call.gathered(), begin, dispatched)

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """An estimate from the last decode steps; a horizon that is too long delays an arrival by less than itself."""
        if span_ticks is None:
            return self.ladders.loop_steps
        if not self._decode_step_s:
            return 1
        return max(1, min(self.ladders.loop_steps, round(span_ticks / TICKS_PER_S / self._decode_step_s)))

    def release(self, index: int) -> None:
        """Forgets the token ids of a request that left."""
        self.book.close(index)
        self.calls.release(index)
        for mover in self.movers:
            mover.release(index)

    @contextlib.contextmanager
    def aside(self, book: TokenBook) -> Iterator[None]:
        """Plans within are of other requests, on pages that nobody holds, and leave no trace in a run under way."""
        last_tokens = self.state.last_tokens
        # A copy: on a CPU the host sees the very buffer that the next step is given to write over.
        kept = self.book, np.array(last_tokens), self._decode_step_s
        # An array that was in no particular place must come back so, or every program would compile again.
        place = last_tokens.sharding if last_tokens.committed else None
        self.book = book
        self.arrays.forget_tables()  # or requests of the same numbers would be taken for those of the run
        try:
            yield
        finally:
            self.book, tokens, self._decode_step_s = kept
            self.state = dataclasses.replace(self.state, last_tokens=jax.device_put(tokens, place))
            self.arrays.forget_tables()

    def warm_up(self) -> Iterator[str]:
        """Compiles and runs every program once on padding rows; yields the name of each when it is done."""
        yield from warmed_up(self, self.calls)
        for mover in self.movers:
            yield from mover.warm_up()

    @property
    def programs(self) -> int:
        """How many programs `warm_up` compiles."""
        return self.calls.programs + sum(mover.programs for mover in self.movers)

    def run(self, step: Callable[..., tuple], *arrays, **options) -> tuple:
        """Calls an entry point of the model with its weights and state; keeps the new state, returns the rest."""
        self.state, *outputs = step(self.params, self.state, *self.put(arrays), self.key, **options)
        return tuple(outputs)

    def _learn(self, plan: Plan, seconds: float) -> None:
        if plan.kind is Kind.DECODE:
            per_step = seconds / plan.horizon
            old = self._decode_step_s or per_step
            self._decode_step_s = old + _EMA_WEIGHT * (per_step - old)


@dataclasses.dataclass(frozen=True)
class _Running:
    """A dispatched plan."""

    executor: JaxExecutor
    plan: Plan
    call: Call
    executed_kv_tokens: int | None
    begin_ns: int
    dispatched_ns: int

    def result(self) -> StepResult:
        """Waits for the tokens and books them."""
        for array in self.call.outputs:
            array.block_until_ready()
        ready_ns = time.perf_counter_ns()
        plan, executor = self.plan, self.executor
        booked = self.call.book(*map(np.asarray, self.call.outputs))
        end_ns = time.perf_counter_ns()
        executor._learn(plan, (end_ns - self.begin_ns) * 1e-9)
        duration = _ticks(end_ns - self.begin_ns)
        return StepResult(
            duration,
            duration // plan.horizon,
            host_ticks=_ticks(self.dispatched_ns - self.begin_ns + end_ns - ready_ns),
            executed_tokens=self.call.executed_tokens,
            executed_kv_tokens=self.executed_kv_tokens,
            **booked,
        )

    def ready(self) -> bool:
        """Whether the device is done; does not wait for it."""
        return all(array.is_ready() for array in self.call.outputs)  # type: ignore[attr-defined]


def _ticks(nanoseconds: int) -> int:
    return nanoseconds * TICKS_PER_S // 1_000_000_000
