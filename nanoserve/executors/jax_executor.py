"""Runs plans with JAX: rows of a plan become padded device arrays, one compiled call, and tokens on the host.

All programs are compiled by `warm_up` for a grid of buckets (`Ladders`); after that nothing compiles. The device keeps
KV pages and last tokens, so a decode step sends only integers, and a horizon of k steps is one call. Time is wall time.

Next: `nanoserve.model.step` (the entry points), `buckets` (the ladders), `tokens` (ids on the host).
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from nanoserve.engine.types import TICKS_PER_S, Kind, Plan, Row, StepResult
from nanoserve.executors.buckets import bucket
from nanoserve.executors.tokens import TokenBook
from nanoserve.model.params import Params
from nanoserve.model.sampling import SamplingParams
from nanoserve.model.step import DecodeRows, DeviceState, PrefillRows, Steps
from nanoserve.roofline.counts import StepCounts

KvLedger = Callable[[np.ndarray, np.ndarray, np.ndarray, int], int | None]
"""(decode KV lengths with padding, chunk KV lengths, chunk lengths, padded chunk tokens) -> positions gathered in a
step, or None where the implementation does not say."""

_EMA_WEIGHT = 0.2  # of the newest decode step in the estimate of the next


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladders:
    """The padded sizes that are compiled.

    Attributes:
      decode_rows: B of decode and mixed steps. prefill_tokens: T of prefill and mixed steps.
      prefill_rows: most chunks in one step; a T below it pads to T rows.
      table_pages: N, pages in one row of a page table.
      loop_steps: most steps of one `decode_loop`.
    """

    decode_rows: tuple[int, ...]
    prefill_tokens: tuple[int, ...]
    prefill_rows: int
    table_pages: int
    loop_steps: int

    @property
    def programs(self) -> int:
        """How many programs the ladders ask for."""
        decode, prefill = len(self.decode_rows), len(self.prefill_tokens)
        return decode * (1 + (self.loop_steps > 1)) + prefill * (1 + decode)


@dataclasses.dataclass(frozen=True)
class RequestSampling:
    """Sampling parameters of every request, as NumPy columns in the order of `model.sampling.SamplingParams`."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    seed: np.ndarray

    @classmethod
    def uniform(
        cls,
        requests: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> "RequestSampling":
        """The same parameters for all, with a seed of its own for each request: `seed + index`."""
        return cls(
            np.full(requests, temperature, np.float32),
            np.full(requests, top_k, np.int32),
            np.full(requests, top_p, np.float32),
            np.full(requests, min_p, np.float32),
            (np.arange(requests, dtype=np.uint64) + seed).astype(np.uint32),
        )

    def rows(self, indices: np.ndarray) -> SamplingParams:
        """One entry per index; a negative index is a padding row and samples greedily."""
        pick = np.maximum(indices, 0)
        columns: dict[str, Any] = {  # NumPy on purpose: jit takes it as it is
            "temperature_B": np.where(indices < 0, np.float32(0), self.temperature[pick]),
            "top_k_B": self.top_k[pick],
            "top_p_B": self.top_p[pick],
            "min_p_B": self.min_p[pick],
            "seed_B": self.seed[pick],
        }
        return SamplingParams(**columns)


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
        self.ladders, self.book, self.sampling, self.key = ladders, book, sampling, key
        self.max_seqs, self.attention = max_seqs, attention
        self._ledger = ledger
        self._put = put
        self._tables = np.zeros((max_seqs + 1, ladders.table_pages), np.int32)
        self._filled = [0] * (max_seqs + 1)
        self._owner = [-1] * (max_seqs + 1)
        self._decode_step_s = 0.0

    # ---- Executor ----

    def submit(self, plan: Plan) -> "_Running":
        """Dispatches a plan; the device works while the host returns."""
        begin = time.perf_counter_ns()
        rows = plan.rows()
        decode, chunks = rows[: plan.counts.decode_seqs], rows[plan.counts.decode_seqs :]
        for row in rows:
            self._sync_table(row)
        outputs, executed = self._dispatch(plan, decode, chunks)
        dispatched = time.perf_counter_ns()
        gathered = self._gathered_kv_tokens(plan, decode, chunks)  # while the device works
        return _Running(self, plan, decode, chunks, outputs, executed, gathered, begin, dispatched)

    def steps_before(self, counts: StepCounts, span_ticks: int) -> int:
        """An estimate from the last decode steps; a horizon that is too long delays an arrival by less than itself."""
        if not self._decode_step_s:
            return 1
        return max(1, min(self.ladders.loop_steps, round(span_ticks / TICKS_PER_S / self._decode_step_s)))

    def release(self, index: int) -> None:
        """Forgets the token ids of a request that left."""
        self.book.close(index)

    def warm_up(self) -> Iterator[str]:
        """Compiles and runs every program once on padding rows; yields the name of each when it is done."""
        for rows in self.ladders.decode_rows:
            decode = self._decode_rows((), rows)
            self._keep(self.steps.decode(self.params, self.state, self._put(decode), self.key))
            yield f"decode[{rows}]"
            if self.ladders.loop_steps > 1:
                self._keep(self._loop(decode, 1))
                yield f"decode_loop[{rows}]"
        for tokens in self.ladders.prefill_tokens:
            prefill = self._prefill_rows((), tokens)
            self._keep(self.steps.prefill(self.params, self.state, self._put(prefill), self.key))
            yield f"prefill[{tokens}]"
            for rows in self.ladders.decode_rows:
                decode, chunks = self._put((self._decode_rows((), rows), prefill))
                self._keep(self.steps.mixed(self.params, self.state, decode, chunks, self.key))
                yield f"mixed[{rows}, {tokens}]"

    # ---- from rows to arrays ----

    def _dispatch(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row]) -> tuple[tuple, int]:
        if plan.kind is Kind.DECODE:
            padded = self._decode_rows(decode, bucket(self.ladders.decode_rows, len(decode) + plan.padding_rows))
            executed = plan.horizon * len(padded.slots_B)
            if plan.horizon > 1:
                return self._keep(self._loop(padded, plan.horizon)), executed
            return self._keep(self.steps.decode(self.params, self.state, self._put(padded), self.key)), executed
        tokens = bucket(self.ladders.prefill_tokens, plan.counts.prefill_tokens)
        prefill = self._prefill_rows(chunks, tokens)
        if plan.kind is Kind.PREFILL:
            return self._keep(self.steps.prefill(self.params, self.state, self._put(prefill), self.key)), tokens
        padded = self._decode_rows(decode, bucket(self.ladders.decode_rows, len(decode)))
        executed = tokens + len(padded.slots_B)
        padded, prefill = self._put((padded, prefill))
        return self._keep(self.steps.mixed(self.params, self.state, padded, prefill, self.key)), executed

    def _loop(self, decode: DecodeRows, steps: int):
        decode, count = self._put((decode, np.int32(steps)))
        return self.steps.decode_loop(
            self.params, self.state, decode, count, self.key, max_steps=self.ladders.loop_steps
        )

    def _keep(self, stepped: tuple) -> tuple:
        self.state, *outputs = stepped
        return tuple(outputs)

    def _decode_rows(self, rows: Sequence[Row], padded: int) -> DecodeRows:
        slots = np.full(padded, self.max_seqs, np.int32)
        positions = np.zeros(padded, np.int32)
        indices = np.full(padded, -1, np.int64)
        for place, row in enumerate(rows):
            slots[place], positions[place], indices[place] = row.slot, row.start, row.index
        arrays: dict[str, Any] = {
            "slots_B": slots,
            "positions_B": positions,
            "page_table_BN": self._tables[slots],
            "active_B": indices >= 0,
        }
        return DecodeRows(**arrays, sampling=self.sampling.rows(indices))

    def _prefill_rows(self, rows: Sequence[Row], padded_tokens: int) -> PrefillRows:
        padded = min(self.ladders.prefill_rows, padded_tokens)
        tokens, positions = np.zeros(padded_tokens, np.int32), np.zeros(padded_tokens, np.int32)
        bounds, kv_lens = np.zeros(padded + 1, np.int32), np.zeros(padded, np.int32)
        slots, samples = np.full(padded, self.max_seqs, np.int32), np.zeros(padded, bool)
        indices = np.full(padded, -1, np.int64)
        end = 0
        for place, row in enumerate(rows):
            begin, end = end, end + row.new_tokens
            tokens[begin:end] = self.book.slice(row.index, row.start, row.new_tokens)
            positions[begin:end] = np.arange(row.start, row.start + row.new_tokens)
            bounds[place + 1] = end
            kv_lens[place] = row.start + row.new_tokens
            slots[place], samples[place], indices[place] = row.slot, row.samples, row.index
        bounds[len(rows) + 1 :] = end
        arrays: dict[str, Any] = {
            "tokens_T": tokens,
            "positions_T": positions,
            "cu_q_lens": bounds,
            "kv_lens_R": kv_lens,
            "page_table_RN": self._tables[slots],
            "slots_R": slots,
            "samples_R": samples,
        }
        return PrefillRows(**arrays, sampling=self.sampling.rows(indices))

    def _sync_table(self, row: Row) -> None:
        """Copies page ids that this row gained since its slot was last used; all of them for a new owner."""
        slot = row.slot
        if self._owner[slot] != row.index or row.start == 0:
            self._owner[slot], self._filled[slot] = row.index, 0
        filled, held = self._filled[slot], len(row.pages)
        if held > filled:
            self._tables[slot, filled:held] = row.pages[filled:held]
            self._filled[slot] = held

    def _gathered_kv_tokens(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row]) -> int | None:
        """KV positions that attention gathers in all steps of a plan, as the implementation says."""
        rungs = self.ladders.decode_rows
        decode_lens = np.zeros(bucket(rungs, len(decode) + plan.padding_rows) if decode else 0, np.int64)
        decode_lens[: len(decode)] = [row.start + 1 for row in decode]
        kv_lens = np.array([row.start + row.new_tokens for row in chunks], np.int64)
        q_lens = np.array([row.new_tokens for row in chunks], np.int64)
        tokens = bucket(self.ladders.prefill_tokens, plan.counts.prefill_tokens) if chunks else 0
        total = 0
        for step in range(plan.horizon):
            gathered = self._ledger(np.where(decode_lens > 0, decode_lens + step, 0), kv_lens, q_lens, tokens)
            if gathered is None:
                return None
            total += gathered
        return total

    # ---- back on the host ----

    def _book_tokens(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row], outputs: tuple) -> dict[int, int]:
        tokens, logprobs = jax.device_get(outputs)
        tokens, logprobs = np.atleast_2d(tokens), np.atleast_2d(logprobs)
        columns = [(place, row) for place, row in enumerate(decode)]
        offset = 0 if plan.kind is Kind.PREFILL else bucket(self.ladders.decode_rows, len(decode))
        columns += [(offset + place, row) for place, row in enumerate(chunks) if row.samples]
        stopped = {}
        for column, row in columns:
            new = tokens[: plan.horizon, column].tolist()
            kept = self.book.append(row.index, new, logprobs[: plan.horizon, column].tolist())
            if kept is not None:
                stopped[row.index] = kept
        return stopped

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
    decode: Sequence[Row]
    chunks: Sequence[Row]
    outputs: tuple
    executed_tokens: int
    executed_kv_tokens: int | None
    begin_ns: int
    dispatched_ns: int

    def result(self) -> StepResult:
        """Waits for the tokens and books them."""
        jax.block_until_ready(self.outputs)
        ready_ns = time.perf_counter_ns()
        plan, executor = self.plan, self.executor
        stopped = executor._book_tokens(plan, self.decode, self.chunks, self.outputs)
        end_ns = time.perf_counter_ns()
        executor._learn(plan, (end_ns - self.begin_ns) * 1e-9)
        duration = _ticks(end_ns - self.begin_ns)
        return StepResult(
            duration,
            duration // plan.horizon,
            stopped=stopped,
            host_ticks=_ticks(self.dispatched_ns - self.begin_ns + end_ns - ready_ns),
            executed_tokens=self.executed_tokens,
            executed_kv_tokens=self.executed_kv_tokens,
        )


def _ticks(nanoseconds: int) -> int:
    return nanoseconds * TICKS_PER_S // 1_000_000_000
