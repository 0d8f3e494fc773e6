"""The Mosaic TPU kernel: one grid step per work item, pages streamed from HBM through two VMEM buffers.

A block is `block_pages` pages. While one buffer is attended to, the next block arrives in the other, be it of the same
item or of the next one that sees anything: the copies never drain between sequences. Only pages that hold something to
be seen are copied.

Invariants: a buffer is read only after every copy into it was waited for; a copy into it starts only after the block
it held was used up; what an item cannot see is zeroed before use, because a hidden weight is 0 and 0 x NaN is NaN.

Next: `tpu` for the shapes around the kernel, `tpu_work` for the items.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.pallas.paged_attention.tpu_work import Field

LANES = 128
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
      scale, window, soft_cap: as in `api`.
      packed: read keys and values as 32-bit words, which compiles to a fifth of the instructions but which the TPU
        interpreter cannot run.
    """

    tile_tokens: int
    tile_rows: int
    groups: int
    page_tokens: int
    block_pages: int
    table_pages: int
    scale: float
    window: int | None
    soft_cap: float | None
    packed: bool

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
    work,  # [cores * items * fields] in SMEM
    page_table,  # [rows * table_pages] in SMEM
    q,  # [1, K, tile_rows, h]
    kv_pages,  # [P, p, K, 2, h] in HBM
    out,  # [1, K, tile_rows, h]
    buffers,  # [2, block_tokens, K, 2, h]
    arrived,  # one DMA semaphore for each buffer
    turn,  # [1] in SMEM: the buffer that the next block to be used is in, or on its way to
    largest,  # [K, tile_rows, LANES] f32: largest score so far, the same in every lane
    total,  # [K, tile_rows, LANES] f32: sum of the weights so far
    sums,  # [K, tile_rows, h] f32: weighted values so far
    *,
    static: Static,
):
    """One item: its queries against the blocks that they see."""
    core, this, items = pl.program_id(0), pl.program_id(1), pl.num_programs(1)
    item = _Item(work, core * items + this)
    pages = _Pages(static, page_table, kv_pages, buffers, arrived)

    def start(index, block, buffer):
        """Asks for a block of an item of this core; without one, `block` stands for its first."""

        @pl.when(index < items)
        def _():
            wanted = _Item(work, core * items + index)
            first, _ = pages.blocks(wanted)
            pages.start(wanted, first if block is None else block, buffer)

    @pl.when(this == 0)
    def _():
        turn[0] = 0
        start(jnp.where(item[Field.LO] < item[Field.HI], 0, item[Field.NEXT]), None, 0)

    @pl.when(item[Field.FIRST] == 1)
    def _():
        largest[...] = jnp.full_like(largest, EMPTY)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    first, end = pages.blocks(item)

    @pl.loop(first, end)
    def _(block):
        buffer = turn[0]

        @pl.when(block + 1 < end)
        def _():
            start(this, block + 1, 1 - buffer)

        @pl.when(block + 1 == end)
        def _():
            start(item[Field.NEXT], None, 1 - buffer)

        pages.wait(item, block, buffer)
        pages.zero_unseen(item, block, buffer)
        mine, seen = _visible(item, block, static)
        for head in range(q.shape[1]):
            keys, values = _load(buffers, buffer, head, static)
            _attend(q[0, head], keys, values, mine, seen, largest.at[head], total.at[head], sums.at[head], static)
        turn[0] = 1 - buffer

    @pl.when(item[Field.LAST] == 1)
    def _():
        for head in range(q.shape[1]):
            weight = total[head][:, :1]
            out[0, head] = (sums[head] / jnp.where(weight > 0, weight, 1.0)).astype(out.dtype)


@dataclasses.dataclass(frozen=True)
class _Item:
    """A view of one item in the flat work list."""

    work: jax.Ref
    index: jax.Array

    def __getitem__(self, field: Field):
        return self.work[self.index * len(Field) + field]


@dataclasses.dataclass(frozen=True)
class _Pages:
    """The copies of an item's pages into a buffer. `start` and `wait` of one block name the same pages."""

    static: Static
    page_table: jax.Ref
    kv_pages: jax.Ref
    buffers: jax.Ref
    arrived: jax.Ref

    def blocks(self, item: _Item):
        """First block that the item sees, and the one after the last; none where they are equal."""
        tokens = self.static.block_tokens
        first = lax.div(item[Field.LO], tokens)
        return first, jnp.where(item[Field.LO] < item[Field.HI], pl.cdiv(item[Field.HI], tokens), first)

    def start(self, item: _Item, block, buffer) -> None:
        """Starts a block's copies; the caller has checked that nobody needs the buffer."""
        self._each(item, block, buffer, lambda copy: copy.start())

    def wait(self, item: _Item, block, buffer) -> None:
        """Returns when a block's copies have arrived."""
        self._each(item, block, buffer, lambda copy: copy.wait())

    def _each(self, item: _Item, block, buffer, act) -> None:
        p, begin = self.static.page_tokens, block * self.static.block_pages
        first = jnp.maximum(begin, lax.div(item[Field.LO], p))
        end = jnp.minimum(begin + self.static.block_pages, pl.cdiv(item[Field.HI], p))
        row = item[Field.ROW] * self.static.table_pages

        @pl.loop(first, end)
        def _(page):
            source = self.kv_pages.at[self.page_table[row + page]]
            target = self.buffers.at[buffer, pl.ds((page - begin) * p, p)]
            act(pltpu.make_async_copy(source, target, self.arrived.at[buffer]))

    def zero_unseen(self, item: _Item, block, buffer) -> None:
        """Zeroes, page by page, what the item does not see of a block: most blocks have no such page."""
        p, begin = self.static.page_tokens, block * self.static.block_tokens

        @pl.loop(0, self.static.block_pages)
        def _(page):
            lo, hi = item[Field.LO] - begin - page * p, item[Field.HI] - begin - page * p

            @pl.when((lo > 0) | (hi < p))
            def _():
                place = self.buffers.at[buffer, pl.ds(page * p, p)]
                heads = place.shape[1]
                if self.static.packed:
                    place, lo_row, hi_row = _words(place), lo * heads, hi * heads
                    if self.buffers.dtype.itemsize == 4:
                        lo_row, hi_row = 2 * lo_row, 2 * hi_row
                else:
                    lo_row, hi_row = lo, hi
                row = lax.broadcasted_iota(jnp.int32, place.shape, 0)
                place[...] = jnp.where((row >= lo_row) & (row < hi_row), place[...], jnp.zeros((), place.dtype))


def _visible(item: _Item, block, static: Static):
    """Which of the tile's rows are the item's, [rows, 1], and which positions of a block each sees, [rows, tokens]."""
    row = lax.broadcasted_iota(jnp.int32, (static.tile_rows, 1), 0)
    token = 0 * row if static.tile_tokens == 1 else lax.div(row, jnp.int32(static.groups))
    mine = (token >= item[Field.FROM]) & (token < item[Field.TO])
    own = token + item[Field.SHIFT]
    other = block * static.block_tokens + lax.broadcasted_iota(jnp.int32, (1, static.block_tokens), 1)
    seen = mine & (other <= own)
    return mine, seen if static.window is None else seen & (other > own - static.window)


def _words(ref):
    """[tokens, K, 2, h] as rows of 32-bit words: for 2-byte elements one row a head, key in the low half."""
    tokens, heads, _, h = ref.shape
    if ref.dtype.itemsize == 4:
        return ref.reshape(tokens * heads * 2, h)
    return ref.bitcast(jnp.int32).reshape(tokens * heads, h)


def _load(buffers, buffer, head: int, static: Static):
    """Keys and values of one head in a buffer, [block_tokens, h] each."""
    if not static.packed:
        return buffers[buffer, :, head, 0, :], buffers[buffer, :, head, 1, :]
    heads, dtype = buffers.shape[2], buffers.dtype
    words = _words(buffers.at[buffer])
    if dtype.itemsize == 4:
        stride = 2 * heads
        return (words[pl.ds(2 * head + i, static.block_tokens, stride), :] for i in (0, 1))
    both = words[pl.ds(head, static.block_tokens, heads), :].astype(jnp.uint32)
    return (pltpu.bitcast(half.astype(jnp.uint16), dtype) for half in (both, both >> 16))


def _attend(q, keys, values, mine, seen, largest, total, sums, static: Static) -> None:
    """Adds a block to the running softmax of one head; rows of other items keep their bits."""
    scores = static.scale * _dot(q, keys.astype(q.dtype), contract=1)
    if static.soft_cap is not None:
        scores = static.soft_cap * jnp.tanh(scores / static.soft_cap)
    scores = jnp.where(seen, scores, HIDDEN)
    larger = jnp.maximum(largest[...], jnp.max(scores, axis=1, keepdims=True))
    rescale = jnp.exp(largest[...] - larger)
    weights = jnp.exp(scores - larger[:, :1])
    largest[...] = larger
    total[...] = total[...] * rescale + jnp.sum(weights, axis=1, keepdims=True)
    # Weights are rounded to the query's dtype, as flash attention does; their sum above is not.
    added = sums[...] * rescale[:, :1] + _dot(weights.astype(q.dtype), values.astype(q.dtype), contract=0)
    sums[...] = added if static.tile_tokens == 1 else jnp.where(mine, added, sums[...])


def _dot(a, b, contract: int):
    """`a` times `b` over `b`'s axis `contract`, summed in float32; float32 operands are not rounded to bf16 first."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dims = (((1,), (contract,)), ((), ()))
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
