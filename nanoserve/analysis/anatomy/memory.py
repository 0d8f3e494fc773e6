"""Who fills the KV cache: memory by length of prompt, and what the largest requests hold of it."""

import dataclasses
from typing import Self

import numpy as np
import polars as pl

from nanoserve.analysis.anatomy.sketch import Counts, merged
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.logs.log_set import Joined

_CURVE_POINTS = 300
_TOP = 0.01


@dataclasses.dataclass(frozen=True)
class MemoryByPrompt:
    """KV positions by length of prompt.

    Attributes:
      prompts: requests of each length. tokens: int64 [K], KV positions of all requests of each length.
      held: KV positions of single requests.
    """

    prompts: Counts
    tokens: np.ndarray
    held: Counts

    @classmethod
    def of(cls, prompt_tokens: np.ndarray, kv_tokens: np.ndarray) -> Self:
        """Of int [N] each."""
        prompts = Counts.of(prompt_tokens)
        tokens = np.bincount(np.searchsorted(prompts.values, prompt_tokens), weights=kv_tokens)
        return cls(prompts, tokens.astype(np.int64), Counts.of(kv_tokens))

    def merge(self, other: Self) -> Self:
        """Of both together."""
        prompts = self.prompts.merge(other.prompts)
        tokens = np.zeros(len(prompts.values), np.int64)
        for part in (self, other):
            tokens[np.searchsorted(prompts.values, part.prompts.values)] += part.tokens
        return type(self)(prompts, tokens, self.held.merge(other.held))


def by_prompt(joined: Joined) -> Finding:
    """`anatomy.memory.by_prompt`: what part of the KV memory requests up to each length of prompt take.

    A request takes as many KV positions as its log says, else those of its prompt and answer. Series: `prompt_tokens`,
    and the shares of requests and of memory up to there, `request_share` and `memory_share`.
    """
    key = "anatomy.memory.by_prompt"
    columns = ("prompt_tokens", "response_tokens", *(["used_tokens"] if joined.has("used_tokens") else []))
    found = merged(joined.batches(*columns), lambda part: _of_batch(part.with_columns(kv=kv_tokens(joined))))
    memory, requests = found.tokens.sum(), found.prompts.count
    if not memory:
        return not_computed(key, "KV memory by length of prompt", "no request holds any")
    memory_share = np.cumsum(found.tokens) / memory
    request_share = np.cumsum(found.prompts.times) / requests
    half = int(np.searchsorted(memory_share, 0.5))
    from_half = 1 - request_share[half - 1] if half else 1.0
    top = found.held.share_held_by_top(_TOP)
    lengths = found.prompts.values
    wanted = np.geomspace(max(int(lengths[0]), 1), max(int(lengths[-1]), 1), _CURVE_POINTS)
    rows = np.unique(np.clip(np.searchsorted(lengths, wanted), 0, len(lengths) - 1))
    return Finding(
        key=key,
        title=f"Prompts of {lengths[half]:,} tokens or more, {from_half:.1%} of requests, hold half of the KV memory",
        rows=requests,
        values={
            "kv_tokens": int(memory),
            "kv_tokens_mean": found.held.mean,
            "half_of_memory_from_prompt_tokens": int(lengths[half]),
            "half_of_memory_request_share": float(from_half),
            "share_held_by_top_1_percent": top,
        },
        series={
            "prompt_tokens": lengths[rows].astype(np.float64),
            "request_share": request_share[rows],
            "memory_share": memory_share[rows],
        },
    )


def kv_tokens(joined: Joined) -> pl.Expr:
    """KV positions of a request: those logged, else those that its prompt and answer need."""
    needed = pl.col("prompt_tokens") + pl.col("response_tokens")
    return pl.coalesce("used_tokens", needed) if joined.has("used_tokens") else needed


def _of_batch(part: pl.DataFrame) -> MemoryByPrompt:
    return MemoryByPrompt.of(part["prompt_tokens"].to_numpy(), part["kv"].to_numpy())
