"""A request trace as columns: what arrived when, how long it was, and what it shared with others.

Invariants, checked once by `Trace.validated`: every column has one entry per request, arrivals are finite, non-negative
and sorted, lengths are positive. Rows that break them are errors with a line number in `readers`, never repaired.
Next: `readers` (files in), `synth` (seeded generators), `load` (when requests are sent).
"""

import dataclasses

import numpy as np

from nanoserve.specs.errors import TraceError

MAX_TOKENS = 10_000_000  # a prompt or output above this is a corrupt row, not a request


@dataclasses.dataclass(frozen=True)
class Ragged:
    """A list of integer lists in two arrays: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray  # int64 [total]
    offsets: np.ndarray  # int64 [rows + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> np.ndarray:
        """The integers of one row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """One request per row, sorted by arrival.

    Attributes:
      name: what the trace is called in outputs.
      source: where it came from: a path and reader, or a generator with its seed.
      arrival_s: float64 [N], seconds from the start of the trace.
      prompt_tokens, output_tokens: int64 [N], at least 1 each; the second is the limit that the client states.
      answer_tokens: int64 [N], where an answer ends by itself, at most `output_tokens`; None: at the limit.
      session, turn, client, priority: int64 [N] or None. Sessions and clients are dense numbers from 0, turns from 0.
      region: where each request came from, by name, or None.
      prefix_hashes: ids of whole prompt blocks (equal id at equal depth = same prefix), or None.
      prefix_block_tokens: tokens per hashed block, or None.
      prompt_ids, output_ids: token ids, or None.
      texts: prompts as text, for real models, or None.
    """

    name: str
    source: str
    arrival_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    answer_tokens: np.ndarray | None = None
    session: np.ndarray | None = None
    turn: np.ndarray | None = None
    client: np.ndarray | None = None
    priority: np.ndarray | None = None
    region: tuple[str, ...] | None = None
    prefix_hashes: Ragged | None = None
    prefix_block_tokens: int | None = None
    prompt_ids: Ragged | None = None
    output_ids: Ragged | None = None
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    def validated(self) -> "Trace":
        """Returns the trace itself after checking every invariant.

        Raises:
          TraceError: naming the trace, the column, the row and the value.
        """
        _check_lengths(self)
        _check_column(self, "arrival_s", ~np.isfinite(self.arrival_s) | (self.arrival_s < 0), "a finite time >= 0")
        if len(self) > 1:
            _check_column(self, "arrival_s", np.diff(self.arrival_s, prepend=self.arrival_s[0]) < 0, "sorted times")
        for column in ("prompt_tokens", "output_tokens"):
            values = getattr(self, column)
            _check_column(self, column, (values < 1) | (values > MAX_TOKENS), f"1 to {MAX_TOKENS:,} tokens")
        return self


def _check_lengths(trace: Trace) -> None:
    for field in dataclasses.fields(Trace):
        value = getattr(trace, field.name)
        if isinstance(value, np.ndarray | Ragged | tuple) and len(value) != len(trace):
            raise TraceError(
                f"trace '{trace.name}' ({trace.source}): column {field.name} has {len(value)} rows, arrival_s has "
                f"{len(trace)}"
            )


def _check_column(trace: Trace, column: str, bad: np.ndarray, wanted: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise TraceError(
            f"trace '{trace.name}' ({trace.source}): {column} of request {row} is {getattr(trace, column)[row]}; "
            f"wanted {wanted}"
        )
