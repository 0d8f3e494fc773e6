"""Who guesses the next tokens of sequences that decode: a look into their own past, or a smaller model.

Neither can change what is generated (`model.verify`); a bad guess costs time only. `NgramDrafter` needs no device: it
looks for the last few tokens where they stood before, and takes what followed. `ModelDrafter` runs a second model over
every chunk and every token that the target takes. Its pages have the ids and tables of the target's, so it needs no
scheduler: where pages are shared, freed or taken again, its own content goes along.

Invariant of `ModelDrafter`: its KV is complete wherever the target's is. Chunks run in both models, and a draft loop
writes one position more than it guesses (`model.verify.draft_loop`).

Source of the look-up: Saxena, "Prompt Lookup Decoding", 2023; the most recent match of the longest end, as in vLLM.
Next: `verifying`, which asks a drafter.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from nanoserve.engine.types import Row
from nanoserve.executors.arrays import RowArrays
from nanoserve.executors.buckets import bucket
from nanoserve.executors.tokens import TokenBook
from nanoserve.model.params import Params
from nanoserve.model.step import DeviceState, Steps
from nanoserve.model.verify import DraftRows, SpeculativeSteps


class Drafter(Protocol):
    """Guesses tokens."""

    @property
    def programs(self) -> int:
        """How many programs `warm_up` compiles."""
        ...

    def propose(self, rows: Sequence[Row], book: TokenBook) -> list[list[int]]:
        """At most `new_tokens - 1` guesses for each decode row, in order; fewer or none where there is no idea."""
        ...

    def chunks(self, rows: Sequence[Row], book: TokenBook) -> None:
        """The target runs these prompt chunks."""
        ...

    def release(self, index: int) -> None:
        """A request left."""
        ...

    def warm_up(self, book: TokenBook) -> Iterator[str]:
        """Compiles and runs every program once on padding rows; yields the name of each when it is done."""
        ...


class NgramDrafter:
    """Guesses that what followed the last tokens will follow them again."""

    programs = 0  # nothing is compiled

    def __init__(self, longest: int, shortest: int = 1):
        """Looks for ends of a sequence of `longest` tokens, then of fewer, down to `shortest`."""
        self._sizes = range(longest, shortest - 1, -1)
        self._follows: dict[int, dict[tuple[int, ...], int]] = {}  # request -> tokens -> where the next one last stood
        self._read: dict[int, int] = {}  # request -> tokens that are in `_follows`

    def propose(self, rows: Sequence[Row], book: TokenBook) -> list[list[int]]:
        """See `Drafter.propose`."""
        return [self.continuation(row.index, book.so_far(row.index), row.new_tokens - 1) for row in rows]

    def continuation(self, index: int, tokens: Sequence[int], count: int) -> list[int]:
        """What followed the longest end of `tokens` that stood in it before; the most recent of several places.

        A guess that reaches the end of what is known goes on with itself, as in a text that repeats.

        Args:
          index: the request. tokens: its prompt and output, which only grow from call to call.
          count: most tokens to guess.
        """
        self._read_on(index, tokens)
        follows = self._follows[index]
        for size in self._sizes:
            place = follows.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if place is not None:
                period = len(tokens) - place
                return [tokens[place + offset % period] for offset in range(count)]
        return []

    def chunks(self, rows: Sequence[Row], book: TokenBook) -> None:
        """Nothing: a prompt is read when the first guess is asked for."""

    def release(self, index: int) -> None:
        """Forgets the request."""
        self._follows.pop(index, None)
        self._read.pop(index, None)

    def warm_up(self, book: TokenBook) -> Iterator[str]:
        """Nothing is compiled."""
        return iter(())

    def _read_on(self, index: int, tokens: Sequence[int]) -> None:
        """Notes, for every new token, the ends that it follows."""
        follows = self._follows.setdefault(index, {})
        for place in range(self._read.get(index, 1), len(tokens)):
            for size in self._sizes:
                if size <= place:
                    follows[tuple(tokens[place - size : place])] = place
        self._read[index] = max(1, len(tokens))


class ModelDrafter:
    """Guesses with a smaller model of the same vocabulary."""

    def __init__(
        self,
        *,
        steps: Steps,
        speculative: SpeculativeSteps,
        params: Params,
        state: DeviceState,
        arrays: RowArrays,
        key: jax.Array,
        draft_tokens: int,
        put: Callable[[Any], Any] = lambda tree: tree,
    ):
        """Takes over `state`.

        Args:
          steps, speculative, params: the draft model. state: with as many pages and slots as the target's.
          arrays: the target's, which has the tables and the sampling of both. key: the target's, for the same noise.
          draft_tokens: most guesses for a row. put: places a tree of host arrays where the steps want them.
        """
        self.state = state
        self._steps, self._speculative, self._params = steps, speculative, params
        self._arrays, self._key, self._draft_tokens, self._put = arrays, key, draft_tokens, put

    @property
    def programs(self) -> int:
        """How many programs `warm_up` compiles."""
        return len(self._arrays.ladders.decode_rows) + len(self._arrays.ladders.prefill_tokens)

    def propose(self, rows: Sequence[Row], book: TokenBook) -> list[list[int]]:
        """See `Drafter.propose`. Runs the draft model even where no row wants a guess: its KV must keep up."""
        tokens = jax.device_get(self._draft(rows, book, bucket(self._arrays.ladders.decode_rows, len(rows))))
        return [tokens[: row.new_tokens - 1, place].tolist() for place, row in enumerate(rows)]

    def chunks(self, rows: Sequence[Row], book: TokenBook) -> None:
        """Runs the chunks in the draft model, too; what it samples after them is of no use."""
        total = sum(row.new_tokens for row in rows)
        self._prefill(rows, book, bucket(self._arrays.ladders.prefill_tokens, total))

    def release(self, index: int) -> None:
        """Nothing is held but pages, which are the scheduler's."""

    def warm_up(self, book: TokenBook) -> Iterator[str]:
        """See `Drafter.warm_up`."""
        for rows in self._arrays.ladders.decode_rows:
            self._draft((), book, rows)
            yield f"draft[{rows}]"
        for tokens in self._arrays.ladders.prefill_tokens:
            self._prefill((), book, tokens)
            yield f"draft_prefill[{tokens}]"

    def _draft(self, rows: Sequence[Row], book: TokenBook, padded: int) -> jax.Array:
        newest, drafts = np.zeros(padded, np.int32), np.full(padded, -1, np.int32)
        for place, row in enumerate(rows):
            newest[place] = book.slice(row.index, row.start, 1)[0]
            drafts[place] = row.new_tokens - 1
        arrays: dict[str, Any] = {"decode": self._arrays.decode(rows, padded), "tokens_B": newest, "drafts_B": drafts}
        asked, options = self._put(DraftRows(**arrays)), {"max_drafts": self._draft_tokens}
        self.state, tokens = self._speculative.draft(self._params, self.state, asked, self._key, **options)
        return tokens

    def _prefill(self, rows: Sequence[Row], book: TokenBook, padded_tokens: int) -> None:
        chunks = self._put(self._arrays.prefill(rows, padded_tokens, book))
        self.state, *_ = self._steps.prefill(self._params, self.state, chunks, self._key)
