"""From the rows of a plan to the padded arrays that a compiled step takes.

The host keeps a copy of every slot's page table, so that a step sends tables without building them anew, and the
sampling parameters of every request as columns. Token ids come from a `TokenBook`, which is an argument: whoever times
programs brings one of its own. Padding rows go to the scratch slot, one past the last.

Next: `jax_executor` (who calls the steps), `buckets` (the ladders), `model.step` (what the arrays mean).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoserve.engine.types import Row
from nanoserve.executors.buckets import GRAIN, bucket
from nanoserve.executors.tokens import TokenBook
from nanoserve.model.sampling import Sampler, SamplingParams, sampler_for
from nanoserve.model.step import DecodeRows, PrefillRows
from nanoserve.model.verify import VerifyRows

_NOBODY = (-1, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladders:
    """The padded sizes that are compiled.

    Attributes:
      decode_rows: B of decode steps. prefill_tokens: T of prefill and mixed steps.
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
    def mixed_rows(self) -> tuple[int, ...]:
        """B of mixed steps: beside a chunk of hundreds of tokens, a few rows cost what `GRAIN` of them cost."""
        return (*(rows for rows in self.decode_rows[:-1] if rows >= GRAIN), self.decode_rows[-1])

    @property
    def programs(self) -> int:
        """How many programs the ladders ask for."""
        decode, prefill = len(self.decode_rows), len(self.prefill_tokens)
        return decode * (1 + (self.loop_steps > 1)) + prefill * (1 + len(self.mixed_rows))

    def shape(self, decode_seqs: int, prefill_tokens: int) -> tuple[int, int]:
        """Decode rows and chunk tokens of the program for so many, padding included; 0 of what there is none of."""
        rows = self.mixed_rows if prefill_tokens else self.decode_rows
        return (
            bucket(rows, decode_seqs) if decode_seqs else 0,
            bucket(self.prefill_tokens, prefill_tokens) if prefill_tokens else 0,
        )


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

    @property
    def sampler(self) -> Sampler:
        """The cheapest function that chooses tokens for all of these requests."""
        return sampler_for(self.temperature)

    def with_padding(self) -> Mapping[str, np.ndarray]:
        """The columns as steps call them, with a greedy entry at the end, where an index of -1 finds it."""
        columns = {f"{field.name}_B": getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: np.append(column, np.zeros(1, column.dtype)) for name, column in columns.items()}


class Verified(NamedTuple):
    """A row of a step that verifies: its tokens from `row.start` on, and how many of the last are sampled after."""

    row: Row
    tokens: Sequence[int]
    samples: int


class RowArrays:
    """Makes a step's arrays from rows; `sync` every row of a plan first."""

    def __init__(self, ladders: Ladders, sampling: RequestSampling, max_seqs: int):
        """Starts with empty page tables.

        Args:
          ladders: for the width of a table and the rows of a prefill. sampling: per request. max_seqs: slots.
        """
        self.ladders, self.sampling, self.max_seqs = ladders, sampling, max_seqs
        self._columns = sampling.with_padding()
        self._tables = np.zeros((max_seqs + 1, ladders.table_pages), np.int32)
        self._filled = [0] * (max_seqs + 1)
        self._owner: list[tuple[int, int]] = [_NOBODY] * (max_seqs + 1)  # (request, admission)

    def sync(self, rows: Sequence[Row]) -> None:
        """Copies page ids that rows gained since their slots were last used; all of them for a new owner."""
        for row in rows:
            slot, owner = row.slot, (row.index, row.admission)
            if self._owner[slot] != owner:
                self._owner[slot], self._filled[slot] = owner, 0
            filled, held = self._filled[slot], len(row.pages)
            if held > filled:
                self._tables[slot, filled:held] = row.pages[filled:held]
                self._filled[slot] = held

    def forget_tables(self) -> None:
        """Takes every table anew at the next `sync`: something else has written over them."""
        self._owner = [_NOBODY] * len(self._owner)

    def decode(self, rows: Sequence[Row], padded: int) -> DecodeRows:
        """Decode rows, padded to `padded` of them."""
        columns = np.empty((3, padded), np.int32)
        columns[:, len(rows) :] = [[self.max_seqs], [0], [-1]]
        if rows:  # all at once: elements are set more slowly one by one
            columns[:, : len(rows)] = np.array([(row.slot, row.start, row.index) for row in rows], np.int32).T
        slots, positions, indices = columns
        arrays: dict[str, Any] = {
            "slots_B": slots,
            "positions_B": positions,
            "page_table_BN": self._tables[slots],
            "active_B": indices >= 0,
        }
        return DecodeRows(**arrays, sampling=self._sampling(indices))

    def prefill(self, rows: Sequence[Row], padded_tokens: int, book: TokenBook) -> PrefillRows:
        """Prompt chunks, padded to `padded_tokens` tokens of all of them; `book` has the ids."""
        ids = [book.slice(row.index, row.start, row.new_tokens) for row in rows]
        return self._chunks(rows, ids, padded_tokens, self.ladders.prefill_rows)

    def verify(self, rows: Sequence[Verified], padded_tokens: int, padded_samples: int) -> VerifyRows:
        """Rows of any number of tokens, padded to `padded_tokens` and `padded_samples` of all of them."""
        sampled, indices = np.zeros(padded_samples, np.int32), np.full(padded_samples, -1, np.int64)
        place = end = 0
        for row, tokens, count in rows:
            end += len(tokens)
            sampled[place : place + count] = np.arange(end - count, end)
            indices[place : place + count] = row.index
            place += count
        ids = [tokens for _, tokens, _ in rows]
        chunks = self._chunks([row for row, _, _ in rows], ids, padded_tokens, self.max_seqs)
        arrays: dict[str, Any] = {"chunks": chunks, "sampled_S": sampled}
        return VerifyRows(**arrays, sampling=self._sampling(indices))

    def _sampling(self, indices: np.ndarray) -> SamplingParams:
        """The parameters of each request; an index of -1 is a padding row."""
        columns: dict[str, Any] = {name: column[indices] for name, column in self._columns.items()}
        return SamplingParams(**columns)  # NumPy on purpose: jit takes it as it is

    def _chunks(
        self, rows: Sequence[Row], ids: Sequence[Sequence[int]], padded_tokens: int, most_rows: int
    ) -> PrefillRows:
        padded = min(most_rows, padded_tokens)
        tokens, positions = np.zeros(padded_tokens, np.int32), np.zeros(padded_tokens, np.int32)
        bounds, kv_lens = np.zeros(padded + 1, np.int32), np.zeros(padded, np.int32)
        slots, samples = np.full(padded, self.max_seqs, np.int32), np.zeros(padded, bool)
        indices = np.full(padded, -1, np.int64)
        end = 0
        for place, (row, new) in enumerate(zip(rows, ids, strict=True)):
            begin, end = end, end + len(new)
            tokens[begin:end] = new
            positions[begin:end] = np.arange(row.start, row.start + len(new))
            bounds[place + 1] = end
            kv_lens[place] = row.start + len(new)
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
        return PrefillRows(**arrays, sampling=self._sampling(indices))
