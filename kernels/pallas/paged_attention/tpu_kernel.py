"""The Mosaic TPU kernel: one grid step per work item, pages streamed from HBM through two VMEM buffers.

A block is `block_pages` pages. While one buffer is attended to, the next block arrives in the other, be it of the same
item or of the next one that sees anything: the copies never drain between sequences. Only pages that hold something to
be seen are copied.

Invariants: a buffer is read only after every copy into it was waited for; a copy into it starts only after the block
it held was used up; what an item cannot see is zeroed before use, because a hidden weight is 0 and 0 x NaN is NaN.

Next: `tpu` for the shapes around the kernel, `tpu_work` for the items.
"""

import dataclasses
import functools

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
      packed: read 16-bit keys and values as 32-bit words, which compiles to a fifth of the instructions but which the
        TPU interpreter cannot run.
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
    work,  # [cores * fields * items] in SMEM
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
    at = functools.partial(_Item, work, core, items)
    item, before, after = at(this), at(jnp.maximum(this - 1, 0)), at(jnp.minimum(this + 1, items - 1))
    pages = _Pages(static, page_table, kv_pages, buffers, arrived)

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

        @pl.when(~pages.whole(item, block))
        def _():
            pages.zero_unseen(item, block, buffer)

        mine, seen = _visible(item, block, static)
        for head in range(q.shape[1]):
            keys, values = _load(buffers, buffer, head, static)
            _attend(q[0, head], keys, values, mine, seen, largest.at[head], total.at[head], sums.at[head], static)
        turn[0] = 1 - buffer

    @pl.when((this + 1 == items) | (item[Field.TILE] != after[Field.TILE]))
    def _():
        for head in range(q.shape[1]):
            weight = total[head][:, :1]
            out[0, head] = (sums[head] / jnp.where(weight > 0, weight, 1.0)).astype(out.dtype)


@dataclasses.dataclass(frozen=True)
class _Item:
    """A view of one item in the flat work list."""

    work: jax.Ref
    core: jax.Array
    items: int
    index: jax.Array

    def __getitem__(self, field: Field):
        return self.work[(self.core * len(Field) + field) * self.items + self.index]


@dataclasses.dataclass(frozen=True)
class _Pages:
    """The copies of an item's pages into a buffer. `start` and `wait` of one block name the same pages."""

    static: Static
    page_table: jax.Ref
    kv_pages: jax.Ref
    buffers: jax.Ref
    arrived: jax.Ref

    def first_block(self, item: _Item):
        """The first block that the item sees something of."""
        return lax.div(item[Field.LO], self.static.block_tokens)

    def end_block(self, item: _Item):
        """One past the last block that the item sees something of; not above `first_block` where there is none."""
        return jnp.where(item[Field.LO] < item[Field.HI], pl.cdiv(item[Field.HI], self.static.block_tokens), 0)

    def whole(self, item: _Item, block):
        """Whether the item sees all of a block."""
        begin = block * self.static.block_tokens
        return (item[Field.LO] <= begin) & (begin + self.static.block_tokens <= item[Field.HI])

    def start(self, item: _Item, block, buffer) -> None:
        """Starts a block's copies; the caller has checked that nobody needs the buffer."""
        self._each(item, block, buffer, lambda copy: copy.start())

    def wait(self, item: _Item, block, buffer) -> None:
        """Returns when a block's copies have arrived."""
        self._each(item, block, buffer, lambda copy: copy.wait())

    def _each(self, item: _Item, block, buffer, act) -> None:
        """Does something to the copy of every page of a block that the item sees; straight-line code if it is all."""
        p, n, begin = self.static.page_tokens, self.static.block_pages, block * self.static.block_pages
        row = item[Field.ROW] * self.static.table_pages + begin

        def one(page):
            source = self.kv_pages.at[self.page_table[row + page]]
            target = self.buffers.at[buffer, pl.ds(page * p, p)]
            act(pltpu.make_async_copy(source, target, self.arrived.at[buffer]))

        first = jnp.maximum(lax.div(item[Field.LO], p) - begin, 0)
        end = jnp.minimum(pl.cdiv(item[Field.HI], p) - begin, n)
        whole = end - first == n

        @pl.when(whole)
        def _():
            for page in range(n):
                one(page)

        @pl.when(~whole)
        def _():
            pl.loop(first, end)(one)

    def zero_unseen(self, item: _Item, block, buffer) -> None:
        """Zeroes, page by page, what the item does not see of a block: most blocks have no such page."""
        p, begin = self.static.page_tokens, block * self.static.block_tokens

        @pl.loop(0, self.static.block_pages)
        def _(page):
            lo, hi = item[Field.LO] - begin - page * p, item[Field.HI] - begin - page * p

            @pl.when((lo > 0) | (hi < p))
            def _():
                place = self.buffers.at[buffer, pl.ds(page * p, p)]
                place = _words(place) if self.static.packed else place
                rows = place.shape[0] // p  # of one token
                row = lax.broadcasted_iota(jnp.int32, place.shape, 0)
                seen = (row >= lo * rows) & (row < hi * rows)
                place[...] = jnp.where(seen, place[...], jnp.zeros((), place.dtype))


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
    """16-bit [tokens, K, 2, h] as 32-bit words: a row of them for each token and head, key low and value high.

    Rows are LANES long, so there are two of them where h is 256.
    """
    tokens, heads, _, h = ref.shape
    lanes = min(h, LANES)
    return ref.bitcast(jnp.int32).reshape(tokens * heads * h // lanes, lanes)


def _load(buffers, buffer, head: int, static: Static):
    """Keys and values of one head in a buffer, [block_tokens, h] each."""
    if not static.packed:
        return buffers[buffer, :, head, 0, :], buffers[buffer, :, head, 1, :]
    words = _words(buffers.at[buffer])
    stride = words.shape[0] // static.block_tokens
    rows = range(head * stride // buffers.shape[2], (head + 1) * stride // buffers.shape[2])
    both = jnp.concatenate([words[pl.ds(row, static.block_tokens, stride), :] for row in rows], axis=1)
    both = both.astype(jnp.uint32)
    return (pltpu.bitcast(half.astype(jnp.uint16), buffers.dtype) for half in (both, both >> 16))


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
