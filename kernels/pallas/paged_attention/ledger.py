"""KV positions that the kernels fetch, for the account of what padding costs: whole pages, once a tile of queries.

`xla` keeps an account of its own: it gathers chunks for all rows at once.
"""

import numpy as np


def decode_gathered_tokens(kv_lens: np.ndarray, page_tokens: int, window: int | None = None) -> int:
    """KV positions of one decode call.

    Args:
      kv_lens: [B] as passed to `api.decode_attention`; 0 is a padding row.
      page_tokens: p.
      window: positions a query sees; None for all.
    """
    lens = np.asarray(kv_lens, np.int64)
    first = np.zeros_like(lens) if window is None else np.maximum(lens - window, 0)
    return _whole_pages(first, lens, page_tokens)


def prefill_gathered_tokens(
    kv_lens: np.ndarray,
    q_lens: np.ndarray,
    page_tokens: int,
    tile_tokens: int,
    window: int | None = None,
    *,
    across_chunks: bool,
) -> int:
    """KV positions of one prefill call.

    Args:
      kv_lens, q_lens: [R] positions written, and queries, of each row.
      page_tokens, window: as for `decode_gathered_tokens`.
      tile_tokens: queries that share what is fetched.
      across_chunks: tiles are cut from all chunks laid end to end, rather than from each by itself.
    """
    total, begin = 0, 0
    for kv_len, q_len in zip(np.asarray(kv_lens).tolist(), np.asarray(q_lens).tolist(), strict=True):
        offset = begin % tile_tokens if across_chunks else 0
        cuts = np.unique(np.clip(np.arange(-offset, q_len + tile_tokens, tile_tokens), 0, q_len))
        starts, ends = kv_len - q_len + cuts[:-1], kv_len - q_len + cuts[1:]
        first = np.zeros_like(starts) if window is None else np.maximum(starts - window + 1, 0)
        total += _whole_pages(first, ends, page_tokens)
        begin += q_len
    return total


def _whole_pages(first: np.ndarray, end: np.ndarray, page_tokens: int) -> int:
    """Positions of the pages that hold any of `[first, end)`, summed."""
    pages = -(-end // page_tokens) - first // page_tokens
    return int(np.sum(np.where(end > first, pages, 0)) * page_tokens)
