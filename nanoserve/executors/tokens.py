"""The token ids of every request in flight: what a chunk reads, what a step appended, and where generation stops.

What a request generated stays for the report when it has left, packed into a spool. Next: `arrays`, which reads chunks.
"""

import struct
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from nanoserve.engine.page_keys import extend_chain
from nanoserve.engine.spool import MemorySpool, Spool

_HEAD = struct.Struct("<qq")  # request, tokens; then the ids as int32 and their log-probabilities as float64


class TokenBook:
    """Prompt and generated ids per request. Recomputing after a preemption reads the generated ones back as prompt."""

    def __init__(
        self,
        prompt_of: Callable[[int], Sequence[int] | np.ndarray],
        stop_ids: Collection[int] = (),
        spool: Callable[[], Spool] = MemorySpool,
    ):
        """Makes an empty book.

        Args:
          prompt_of: request index -> prompt ids; called once, when they are wanted first.
          stop_ids: ids that end a request; the stop token itself counts as generated.
          spool: makes what the output of requests that left goes to.
        """
        self._prompt_of = prompt_of
        self._stop_ids = frozenset(stop_ids)
        self._tokens: dict[int, list[int]] = {}
        self._outputs: dict[int, list[int]] = {}
        self._logprobs: dict[int, list[float]] = {}
        self._page_keys: dict[tuple[int, int], list[int]] = {}  # by request and tokens of a page
        self._left = spool()

    @property
    def outputs(self) -> dict[int, list[int]]:
        """Generated ids of every request so far; makes the dictionary anew."""
        return {index: ids for index, ids, _ in self.records()}

    @property
    def logprobs(self) -> dict[int, list[float]]:
        """Their log-probabilities, likewise."""
        return {index: logprobs for index, _, logprobs in self.records()}

    def records(self) -> Iterator[tuple[int, list[int], list[float]]]:
        """(request, generated ids, their log-probabilities): those that left, in that order, then those in flight."""
        packed, place = memoryview(self._left.whole()), 0
        while place < len(packed):
            index, count = _HEAD.unpack_from(packed, place)
            place += _HEAD.size
            ids = np.frombuffer(packed, "<i4", count, place)
            place += ids.nbytes
            logprobs = np.frombuffer(packed, "<f8", count, place)
            place += logprobs.nbytes
            yield index, ids.tolist(), logprobs.tolist()
        for index, ids in self._outputs.items():
            yield index, ids, self._logprobs[index]

    def slice(self, index: int, start: int, count: int) -> list[int]:
        """Tokens `start .. start + count` of prompt and output together."""
        return self._opened(index)[start : start + count]

    def prompt(self, index: int) -> list[int]:
        """Prompt ids of any request."""
        return [int(token) for token in self._prompt_of(index)]

    def reread(self) -> "TokenBook":
        """A book in which every request's prompt is followed by what this one has of its output: all that is known."""
        outputs = self.outputs
        return TokenBook(lambda index: [*self.prompt(index), *outputs.get(index, ())])

    def newest(self, index: int) -> int:
        """The last token of a request."""
        return self._opened(index)[-1]

    def page_keys(self, index: int, tokens: int, page_tokens: int) -> list[int]:
        """Keys of the full pages among the first `tokens` tokens, for a prefix cache (`engine.page_keys`)."""
        ids = self._opened(index)
        keys = self._page_keys.setdefault((index, page_tokens), [])
        extend_chain(keys, ids, page_tokens)
        return keys[: tokens // page_tokens]

    def so_far(self, index: int) -> Sequence[int]:
        """Prompt and output of an open request. The book's own list: read it, never keep or change it."""
        return self._tokens[index]

    def append(self, index: int, tokens: Sequence[int], logprobs: Sequence[float]) -> int | None:
        """Adds generated tokens up to and including the first stop token.

        Returns:
          How many were kept if a stop token was among them, else None.
        """
        kept = None
        if not self._stop_ids.isdisjoint(tokens):
            kept = next(place + 1 for place, token in enumerate(tokens) if token in self._stop_ids)
            tokens, logprobs = tokens[:kept], logprobs[:kept]
        self._tokens[index].extend(tokens)
        self._outputs[index].extend(tokens)
        self._logprobs[index].extend(logprobs)
        return kept

    def _opened(self, index: int) -> list[int]:
        """All tokens of a request, its prompt asked for when they are wanted first."""
        tokens = self._tokens.get(index)
        if tokens is None:
            tokens = self._tokens[index] = self.prompt(index)
            self._outputs[index] = []
            self._logprobs[index] = []
        return tokens

    def close(self, index: int) -> None:
        """Forgets the prompt of a request that left, and packs its output away."""
        for key in [key for key in self._page_keys if key[0] == index]:
            del self._page_keys[key]
        if self._tokens.pop(index, None) is None:
            return
        ids, logprobs = self._outputs.pop(index), self._logprobs.pop(index)
        self._left += _HEAD.pack(index, len(ids)) + np.array(ids, "<i4").tobytes() + np.array(logprobs, "<f8").tobytes()
