"""Which queries meet which part of the KV: the work lists that the GPU kernels walk, made of a few small integers.

An item is work for one thread block and one head. The list holds the longest items first and the empty ones last, so
that blocks which take every n-th item finish together. How a row is cut depends on that row's length and on static
sizes only: its neighbours cannot change its bits.

The lists depend on lengths only, so a step makes them once for all layers.
Next: `gpu_decode` and `gpu_prefill`, which read them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32


class WorkList(NamedTuple):
    """Items [W, 4], of which the first `count_1[0]` are real; their columns are said where they are made."""

    items_W4: Int32[Array, "W 4"]
    count_1: Int32[Array, "1"]


PADDING_POSITION = -(2**30)  # of padding tokens; far enough from 0 for any tile and window


def decode_cuts(
    kv_lens_B: Int32[Array, " B"], *, splits: int, block_tokens: int, window: int | None = None
) -> Int32[Array, "B S+1"]:
    """Where every row's positions are cut: at multiples of `block_tokens`, into at most `splits` parts of equal blocks.

    Args:
      kv_lens_B: as in `api.decode_attention`.
      splits: S, most parts of a row; those behind a short row's last are empty.
      block_tokens: positions that a kernel attends to at a time.
      window: positions a query sees; None for all.
    """
    begin_B = jnp.zeros_like(kv_lens_B) if window is None else jnp.maximum(kv_lens_B - window, 0)
    first_B = begin_B // block_tokens
    blocks_B = -(-kv_lens_B // block_tokens) - first_B
    part_B = -(-blocks_B // splits) * block_tokens
    cuts_BS = (first_B * block_tokens)[:, None] + jnp.arange(splits + 1, dtype=jnp.int32) * part_B[:, None]
    return jnp.clip(cuts_BS, begin_B[:, None], kv_lens_B[:, None])


def decode_work_list(cuts_BS: Int32[Array, "B S+1"]) -> WorkList:
    """An item for every part that `decode_cuts` leaves: row, number of the part, and its positions `[begin, end)`."""
    begin_BS, end_BS = cuts_BS[:, :-1], cuts_BS[:, 1:]
    row_BS, split_BS = jnp.indices(begin_BS.shape, dtype=jnp.int32)
    return _longest_first((row_BS, split_BS, begin_BS, end_BS), end_BS - begin_BS)


def prefill_work_list(
    kv_lens_R: Int32[Array, " R"], cu_q_lens: Int32[Array, " R+1"], *, tokens: int, tile_tokens: int
) -> WorkList:
    """Chunks cut into tiles of `tile_tokens` queries, and the padding tokens behind them likewise.

    An item is a tile: its row of the page table, its first query, how many queries are its to write, and the first
    one's position in the sequence. A tile of padding tokens is so far before position 0 that it sees nothing.

    Args:
      kv_lens_R, cu_q_lens: as in `api.prefill_attention`.
      tokens: T, padding included; W = ceil(T / `tile_tokens`) + R + 1, as many as there can be.
      tile_tokens: queries of a tile.
    """
    rows = kv_lens_R.shape[0]
    ends = jnp.append(cu_q_lens[1:], tokens)  # the padding tokens are one more chunk
    positions = jnp.append(kv_lens_R - jnp.diff(cu_q_lens), PADDING_POSITION)
    tiles = -(-(ends - cu_q_lens) // tile_tokens)
    tiles_end = jnp.cumsum(tiles)
    index = jnp.arange(-(-tokens // tile_tokens) + rows + 1, dtype=jnp.int32)
    chunk = jnp.minimum(jnp.searchsorted(tiles_end, index, side="right", method="compare_all"), rows)
    offset = (index - (tiles_end - tiles)[chunk]) * tile_tokens
    token = jnp.minimum(cu_q_lens[chunk] + offset, tokens)
    count = jnp.clip(ends[chunk] - token, 0, tile_tokens)
    position = positions[chunk] + offset
    columns = (jnp.minimum(chunk, rows - 1), token, count, position)
    size = jnp.where(count > 0, 1 + jnp.maximum(position + count, 0), 0)
    return _longest_first(columns, size)


def _longest_first(columns: tuple[jax.Array, ...], size: jax.Array) -> WorkList:
    """A list of `columns`, ordered by `size`; items of size 0 do not count."""
    order = jnp.argsort(-size.reshape(-1), stable=True)
    items = jnp.stack([column.reshape(-1) for column in columns], axis=1).astype(jnp.int32)
    return WorkList(items[order], jnp.sum(size > 0, dtype=jnp.int32).reshape(1))
