"""The Mosaic TPU kernel: one grid step per work item, pages streamed from HBM through two VMEM buffers.

While one buffer is attended to, the next block arrives in the other, be it of the same item or of the next one that
sees anything: the copies never drain between sequences.

Invariants: a buffer is read only after every copy into it was waited for; a copy into it starts only after the block
it held was used up; what an item cannot see is zero before use, because a hidden weight is 0 and 0 x NaN is NaN.

Next: `tpu_pages` for the copies, `tpu_buffers` for the reads, `tpu_work` for the items.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels.pallas.paged_attention.tpu_buffers import Plain
from kernels.pallas.paged_attention.tpu_pages import Item, Pages
from kernels.pallas.paged_attention.tpu_work import Field

HIDDEN = -1e30  # score of a position that a query cannot see; finite, because inf - inf is NaN
EMPTY = -1e29  # largest score of a query that saw nothing yet; so far above HIDDEN that exp(HIDDEN - EMPTY) is 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """What the kernel knows when it is compiled.

    Attributes:
      tile_tokens, tile_rows: Q tokens of a tile, and their Q G rows for one KV head, padded to whole sublanes.
      groups: G.
      page_tokens, block_pages: p, and pages in a buffer.
      table_pages: N, the length of a row of the page table.
      order: how KV lies in a page and in a buffer.
      scale, window, soft_cap: as in `api`.
    """

    tile_tokens: int
    tile_rows: int
    groups: int
    page_tokens: int
    block_pages: int
    table_pages: int
    order: Plain
    scale: float
    window: int | None
    soft_cap: float | None

    @property
    def block_tokens(self) -> int:
        """KV positions in a buffer."""
        return self.block_pages * self.page_tokens

    def most(self, unit_tokens: int, units: int) -> int:
        """Pages or blocks, of `unit_tokens` each, that an item sees at most, out of the `units` of a whole row."""
        if self.window is None:
            return units
        span = self.window + self.tile_tokens - 1
        return min(units, 1 + -(-(span - 1) // unit_tokens))


def kernel(
    work,  # [cores * fields * items] in SMEM
    page_table,  # [rows * table_pages] in SMEM
    first_page,  # [1] in SMEM: added to every entry of the page table
    q,  # [1, K, tile_rows, h]
    pool,  # KV [P, ...] in HBM, and its scales [P, 2, K, p] if it has any
    out,  # [1, K, tile_rows, h]
    buffers,  # [2, ...] for each array of the pool
    arrived,  # one DMA semaphore for each of the two buffers
    turn,  # [1] in SMEM: the buffer that the next block to be used is in, or on its way to
    largest,  # [K, tile_rows, LANES] f32: largest score so far, the same in every lane
    total,  # [K, tile_rows, LANES] f32: sum of the weights so far
    sums,  # [K, tile_rows, h] f32: weighted values so far
    *,
    static: Static,
):
    """One item: its queries against the blocks that they see."""
    core, this, items = pl.program_id(0), pl.program_id(1), pl.num_programs(1)
    at = functools.partial(Item, work, core, items)
    item, before, after = at(this), at(jnp.maximum(this - 1, 0)), at(jnp.minimum(this + 1, items - 1))
    pages = Pages(
        page_tokens=static.page_tokens,
        block_pages=static.block_pages,
        table_pages=static.table_pages,
        order=static.order,
        page_table=page_table,
        first_page=first_page,
        pool=pool,
        buffers=buffers,
        arrived=arrived,
    )

    def start(index, block, buffer):
        @pl.when(index < items)
        def _():
            pages.start(at(index), block, buffer)

    @pl.when(this == 0)
    def _():
        turn[0] = 0
        index = jnp.where(item[Field.LO] < item[Field.HI], 0, item[Field.NEXT])
        start(index, pages.first_block(at(jnp.minimum(index, items - 1))), 0)

    @pl.when((this == 0) | (item[Field.TILE] != before[Field.TILE]))
    def _():
        largest[...] = jnp.full_like(largest, EMPTY)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.loop(pages.first_block(item), pages.end_block(item))
    def _(block):
        buffer = turn[0]
        index = jnp.where(block + 1 < pages.end_block(item), this, item[Field.NEXT])
        next_block = jnp.where(index == this, block + 1, pages.first_block(at(jnp.minimum(index, items - 1))))
        start(index, next_block, 1 - buffer)
        pages.wait(item, block, buffer)
        pages.zero_unseen(item, block, buffer)
        mine, seen = _visible(item, block, static)
        for head in range(q.shape[1]):
            kv = pages.load(item, block, buffer, head)
            _attend(q[0, head], kv, mine, seen, (largest.at[head], total.at[head], sums.at[head]), static)
        turn[0] = 1 - buffer

    @pl.when((this + 1 == items) | (item[Field.TILE] != after[Field.TILE]))
    def _():
        for head in range(q.shape[1]):
            weight = total[head][:, :1]
            out[0, head] = (sums[head] / jnp.where(weight > 0, weight, 1.0)).astype(out.dtype)


def _visible(item: Item, block, static: Static):
    """Which of the tile's rows are the item's, [rows, 1], and which positions of a block each sees, [rows, tokens]."""
    row = lax.broadcasted_iota(jnp.int32, (static.tile_rows, 1), 0)
    token = 0 * row if static.tile_tokens == 1 else lax.div(row, jnp.int32(static.groups))
    mine = (token >= item[Field.FROM]) & (token < item[Field.TO])
    own = token + item[Field.SHIFT]
    other = block * static.block_tokens + lax.broadcasted_iota(jnp.int32, (1, static.block_tokens), 1)
    seen = mine & (other <= own)
    return mine, seen if static.window is None else seen & (other > own - static.window)


def _attend(q, kv, mine, seen, running, static: Static) -> None:
    """Adds a block to the running softmax of one head; rows of other items keep their bits."""
    keys, values, key_scales, value_scales = kv
    largest, total, sums = running
    scores = static.scale * _dot(q, keys.astype(q.dtype), contract=1)
    if key_scales is not None:
        scores = scores * key_scales
    if static.soft_cap is not None:
        scores = static.soft_cap * jnp.tanh(scores / static.soft_cap)
    scores = jnp.where(seen, scores, HIDDEN)
    larger = jnp.maximum(largest[...], jnp.max(scores, axis=1, keepdims=True))
    rescale = jnp.exp(largest[...] - larger)
    weights = jnp.exp(scores - larger[:, :1])
    largest[...] = larger
    total[...] = total[...] * rescale + jnp.sum(weights, axis=1, keepdims=True)
    if value_scales is not None:
        weights = weights * value_scales
    # Weights are rounded to the query's dtype, as flash attention does; their sum above is not.
    added = sums[...] * rescale[:, :1] + _dot(weights.astype(q.dtype), values.astype(q.dtype), contract=0)
    sums[...] = added if static.tile_tokens == 1 else jnp.where(mine, added, sums[...])


def _dot(a, b, contract: int):
    """`a` times `b` over `b`'s axis `contract`, summed in float32; float32 operands are not rounded to bf16 first."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dims = (((1,), (contract,)), ((), ()))
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
