"""Which queries meet which part of the KV: the work list that the TPU kernel walks, made of a few small integers.

Queries are cut into tiles of Q tokens. An item is a stretch of one tile that belongs to one row; it sees positions
`[LO, HI)` of that row. Items of a tile are neighbours, every tile has at least one, and an item that sees nothing still
makes its tile's output be written (with zeros). Chips with two cores take one half of the tiles each: each core walks
a list of its own, and no item of one names an item of the other.

The list depends on lengths only. Inside a jitted step XLA finds the same list in every layer and computes it once.

Next: `tpu_kernel`, which reads it.
"""

import enum

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32


class Field(enum.IntEnum):
    """What an item says about itself; the work list is `[cores, items, field]`.

    Attributes:
      TILE: tile of queries.
      ROW: row of the page table.
      FROM, TO: the item's tokens within its tile.
      SHIFT: position in the sequence of the tile's token 0, negative where the chunk starts inside the tile.
      LO, HI: positions of the row that any of the item's tokens sees; equal where there is nothing to see.
      NEXT: the next item of the same core that sees something; the number of items where there is none.
      FIRST, LAST: 1 for a tile's first and last item.
    """

    TILE = 0
    ROW = 1
    FROM = 2
    TO = 3
    SHIFT = 4
    LO = 5
    HI = 6
    NEXT = 7
    FIRST = 8
    LAST = 9


def decode_work(kv_lens_B: Int32[Array, " B"], cores: int, window: int | None) -> Int32[Array, "C W F"]:
    """One tile and one item a row: `ceil(B / cores)` items for each core, the excess ones empty."""
    B = kv_lens_B.shape[0]
    items = -(-B // cores)
    kv_len = jnp.pad(kv_lens_B, (0, cores * items - B))
    tile = jnp.arange(cores * items, dtype=jnp.int32)
    row = jnp.minimum(tile, B - 1)
    fields = _fields(tile, row, 0 * tile, jnp.minimum(kv_len, 1), kv_len - 1, kv_len, window)
    return jax.vmap(_link)(fields.reshape(cores, items, -1))


def prefill_work(
    kv_lens_R: Int32[Array, " R"],
    cu_q_lens: Int32[Array, " R+1"],
    tiles: int,
    tile_tokens: int,
    cores: int,
    window: int | None,
) -> Int32[Array, "C W F"]:
    """Tiles cut where a chunk ends: `tiles / cores + R + 1` items for each core, which is as many as there can be.

    Args:
      kv_lens_R, cu_q_lens: as in `api.prefill_attention`.
      tiles: how many tiles there are; a multiple of `cores`.
      tile_tokens: Q.
      cores: lists to make.
      window: positions a query sees; None for all.
    """
    share = tiles // cores * tile_tokens
    rows = kv_lens_R.shape[0]

    def one_core(begin):
        starts = begin + jnp.arange(0, share, tile_tokens, dtype=jnp.int32)
        cuts = jnp.sort(jnp.concatenate([starts, jnp.clip(cu_q_lens, begin, begin + share)]))
        ends = jnp.append(cuts[1:], begin + share)
        tile = jnp.minimum(cuts, begin + share - 1) // tile_tokens
        row = jnp.searchsorted(cu_q_lens, cuts, side="right").astype(jnp.int32) - 1
        live = (row < rows) & (cuts < ends)
        row = jnp.clip(row, 0, rows - 1)
        token_0 = tile * tile_tokens
        shift = kv_lens_R[row] - cu_q_lens[row + 1] + token_0
        first = cuts - token_0
        last = jnp.where(live, ends - token_0, first)
        return _link(_fields(tile, row, first, last, shift, shift + last, window))

    return jax.vmap(one_core)(jnp.arange(cores, dtype=jnp.int32) * share)


def _fields(tile, row, first, last, shift, hi, window):
    """Items as an array, links and flags still to be filled in; an item without tokens sees nothing."""
    lo = 0 * hi if window is None else jnp.maximum(shift + first - window + 1, 0)
    hi = jnp.where(first < last, hi, lo)
    unset = 0 * tile
    return jnp.stack([tile, row, first, last, shift, lo, hi, unset, unset, unset], axis=-1)


def _link(fields_WF):
    """The same items, with NEXT, FIRST and LAST."""
    items = fields_WF.shape[0]
    index = jnp.arange(items, dtype=jnp.int32)
    live = fields_WF[:, Field.LO] < fields_WF[:, Field.HI]
    from_here = lax.cummin(jnp.where(live, index, items), reverse=True)
    new_tile = jnp.diff(fields_WF[:, Field.TILE]) != 0
    return (
        fields_WF.at[:, Field.NEXT]
        .set(jnp.append(from_here[1:], items))
        .at[:, Field.FIRST]
        .set(jnp.append(True, new_tile).astype(jnp.int32))
        .at[:, Field.LAST]
        .set(jnp.append(new_tile, True).astype(jnp.int32))
    )
