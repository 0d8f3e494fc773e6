"""Which queries meet which part of the KV: the work list that the TPU kernel walks, made of a few small integers.

Queries are cut into tiles of Q tokens. An item is a stretch of one tile that belongs to one row; it sees positions
`[LO, HI)` of that row. Items of a tile are neighbours, every tile has at least one, and an item that sees nothing still
makes its tile's output be written (with zeros). Chips with two cores take one half of the tiles each: each core walks
a list of its own, and no item of one names an item of the other.

The list depends on lengths only, so a step makes it once for all layers. Left inside the loop over layers it is made
again in each: a dozen small operations, of 1.2 us each by XLA's estimate.

Next: `tpu_kernel`, which reads it.
"""

import enum
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32


class Field(enum.IntEnum):
    """What an item says about itself; the work list is `[cores, field, items]`.

    Attributes:
      TILE: tile of queries.
      ROW: row of the page table.
      FROM, TO: the item's tokens within its tile.
      SHIFT: position in the sequence of the tile's token 0, negative where the chunk starts inside the tile.
      LO, HI: positions of the row that any of the item's tokens sees; equal where there is nothing to see.
      NEXT: the next item of the same core that sees something; the number of items where there is none.
    """

    TILE = 0
    ROW = 1
    FROM = 2
    TO = 3
    SHIFT = 4
    LO = 5
    HI = 6
    NEXT = 7


class Work(NamedTuple):
    """What the kernel needs to know of a call's rows: the work list, and the page table with wild entries clipped."""

    items_CFW: Int32[Array, "C F W"]
    page_table: Int32[Array, "R N"]


def decode_work(kv_lens_B: Int32[Array, " B"], cores: int, window: int | None) -> Int32[Array, "C F W"]:
    """One tile and one item a row: `ceil(B / cores)` items for each core, the excess ones empty."""
    B = kv_lens_B.shape[0]
    items = -(-B // cores)
    kv_len = jnp.pad(kv_lens_B, (0, cores * items - B)).reshape(cores, items)
    tile = jnp.arange(cores * items, dtype=jnp.int32).reshape(cores, items)
    row = jnp.minimum(tile, B - 1)
    return _work(tile, row, jnp.zeros_like(tile), jnp.minimum(kv_len, 1), kv_len - 1, window)


def prefill_work(
    kv_lens_R: Int32[Array, " R"],
    cu_q_lens: Int32[Array, " R+1"],
    tiles: int,
    tile_tokens: int,
    cores: int,
    window: int | None,
) -> Int32[Array, "C F W"]:
    """Tiles cut where a chunk ends: `tiles / cores + R + 1` items for each core, which is as many as there can be.

    Args:
      kv_lens_R, cu_q_lens: as in `api.prefill_attention`.
      tiles: how many tiles there are; a multiple of `cores`.
      tile_tokens: Q.
      cores: lists to make.
      window: positions a query sees; None for all.
    """
    rows, share = kv_lens_R.shape[0], tiles // cores * tile_tokens
    begin = share * jnp.arange(cores, dtype=jnp.int32)[:, None]
    starts = begin + jnp.arange(0, share, tile_tokens, dtype=jnp.int32)
    cuts = jnp.sort(jnp.concatenate([starts, jnp.clip(cu_q_lens, begin, begin + share)], axis=1), axis=1)
    ends = jnp.concatenate([cuts[:, 1:], begin + share], axis=1)
    tile = jnp.minimum(cuts, begin + share - 1) // tile_tokens
    row = jnp.searchsorted(cu_q_lens, cuts, side="right").astype(jnp.int32) - 1
    owned = row < rows
    row = jnp.minimum(row, rows - 1)
    token_0 = tile * tile_tokens
    shift = kv_lens_R[row] - cu_q_lens[row + 1] + token_0
    return _work(tile, row, cuts - token_0, jnp.where(owned, ends, cuts) - token_0, shift, window)


def _work(tile, row, first, end, shift, window: int | None):
    """The list from what each item is; all arguments are [cores, items]."""
    items = tile.shape[1]
    lo = jnp.zeros_like(shift) if window is None else jnp.maximum(shift + first - window + 1, 0)
    hi = jnp.where(first < end, shift + end, lo)
    live = jnp.where(lo < hi, jnp.arange(items, dtype=jnp.int32), items)
    following = jnp.pad(lax.cummin(live, axis=1, reverse=True)[:, 1:], ((0, 0), (0, 1)), constant_values=items)
    return jnp.stack([tile, row, first, end, shift, lo, hi, following], axis=1)
