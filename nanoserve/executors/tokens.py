"""The token ids of every request in flight: what a chunk reads, what a step appended, and where generation stops."""

from collections.abc import Callable, Collection, Sequence

import numpy as np


class TokenBook:
    """Prompt and generated ids per request. Recomputing after a preemption reads the generated ones back as prompt."""

    def __init__(self, prompt_of: Callable[[int], Sequence[int] | np.ndarray], stop_ids: Collection[int] = ()):
        """Makes an empty book.

        Args:
          prompt_of: request index -> prompt ids; called once, when its first chunk runs.
          stop_ids: ids that end a request; the stop token itself counts as generated.
        """
        self._prompt_of = prompt_of
        self._stop_ids = frozenset(stop_ids)
        self._tokens: dict[int, list[int]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float]] = {}

    def slice(self, index: int, start: int, count: int) -> list[int]:
        """Tokens `start .. start + count` of prompt and output together."""
        tokens = self._tokens.get(index)
        if tokens is None:
            tokens = self._tokens[index] = [int(t) for t in self._prompt_of(index)]
            self.outputs[index] = []
            self.logprobs[index] = []
        return tokens[start : start + count]

    def append(self, index: int, tokens: Sequence[int], logprobs: Sequence[float]) -> int | None:
        """Adds generated tokens up to and including the first stop token.

        Returns:
          How many were kept if a stop token was among them, else None.
        """
        kept = next((place + 1 for place, token in enumerate(tokens) if token in self._stop_ids), None)
        self._tokens[index].extend(tokens[:kept])
        self.outputs[index].extend(tokens[:kept])
        self.logprobs[index].extend(logprobs[:kept])
        return kept

    def close(self, index: int) -> None:
        """Forgets the prompt of a request that left; its outputs stay for the report."""
        self._tokens.pop(index, None)
