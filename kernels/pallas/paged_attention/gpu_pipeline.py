"""KV blocks on their way through shared memory, and the online softmax over them: what both GPU kernels are made of.

A block is `block_tokens` consecutive positions of one sequence and one KV head. One warpgroup fetches (`fetch_blocks`):
it reads page ids from the page table in global memory and asks the TMA for one box of K and one of V per page. The
others attend (`attend_block`). Between them lies a `Ring` of `stages` slots, K and V apart, because K is free again
one matrix product earlier.

The protocol of a slot: a consumer arrives on `free` when it is done with the slot, and once at the start (`open_ring`);
the fetcher waits for `free`, then the TMA arrives on `full`.

The kernel that runs and the one that a CPU interprets differ in `Static.interpreted` alone: the interpreter of jax
0.11.2 multiplies from shared memory only, knows no accumulators that live across products, and insists that every
phase of every barrier is waited for, the last ones (`drain`) included.

Next: `gpu_convert` (pages of 8 bits), `gpu_decode`, `gpu_prefill`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

HIDDEN = -1e30  # score of a position that a query cannot see; finite, because inf - inf is NaN
LOG2_E = math.log2(math.e)
ROWS = 64  # queries of a warpgroup: the M of a wgmma

Ref = Any  # a Pallas reference; its shape is said where it is made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """What a kernel is compiled for.

    Attributes:
      page_tokens, head_size: p and h.
      dtype, kv_dtype: of queries and of pages; where they differ, pages are converted on the way (`gpu_convert`).
      block_tokens: KV positions attended to at a time.
      stages: slots of the ring that the TMA fills.
      converted: slots of the ring of converted blocks, where there is one.
      scale, window, soft_cap: as in `api`.
      interpreted: for the interpreter rather than for a GPU.
    """

    page_tokens: int
    head_size: int
    dtype: Any
    kv_dtype: Any
    block_tokens: int
    stages: int
    converted: int
    scale: float
    window: int | None
    soft_cap: float | None
    interpreted: bool

    @property
    def box_tokens(self) -> int:
        """Positions that one TMA box covers: a page, or the part of it that fits in a block."""
        return min(self.page_tokens, self.block_tokens)

    @property
    def boxes(self) -> int:
        """TMA boxes of K, and of V, in a block."""
        return self.block_tokens // self.box_tokens

    @property
    def quantised(self) -> bool:
        """Whether pages hold 8-bit numbers."""
        return self.kv_dtype != self.dtype

    @property
    def slots(self) -> int:
        """Slots of the ring that is attended to."""
        return self.converted if self.quantised else self.stages

    @property
    def score_factor(self) -> float:
        """What makes a product of query and key a score in units of log2, or twice that for `_capped`."""
        return self.scale * LOG2_E if self.soft_cap is None else 2 * self.scale * LOG2_E / self.soft_cap

    @property
    def columns(self) -> int:
        """Columns of a slab of queries: those of a tile of `tiled`."""
        return tile_columns(self.head_size, self.dtype)

    @property
    def slabs(self) -> int:
        """Slabs that queries are cut into."""
        return self.head_size // self.columns

    def edge(self, index, begin, end):
        """Whether block `index` holds a position outside `[begin, end)`."""
        return (index * self.block_tokens < begin) | ((index + 1) * self.block_tokens > end)

    def span(self, begin, end):
        """First block that holds any of positions `[begin, end)`, and the one after the last."""
        return lax.div(begin, self.block_tokens), lax.div(end + self.block_tokens - 1, self.block_tokens)


class Ring(NamedTuple):
    """Slots [stages, block_tokens, h] of K and of V, and barriers of each slot: it is full, it is free.

    `v_full` has one barrier more, for values that the fetcher still has to clean. Converted blocks have a factor for
    each score and for each weight, [slots, block_tokens].
    """

    k: Ref
    v: Ref
    k_full: Ref
    v_full: Ref
    k_free: Ref
    v_free: Ref
    k_factors: Ref | None = None
    v_factors: Ref | None = None


class PageRow(NamedTuple):
    """Where a sequence's pages are: its row of the page table, [N], and what to add to each entry, [1]."""

    entries: Ref
    first_page: Ref

    def page(self, position, begin, end, static: Static):
        """The page of the pool that holds `position`, or the nearest that holds any of positions `[begin, end)`."""
        nearest = jnp.clip(position, begin, end - 1)
        return self.entries[lax.div(nearest, static.page_tokens)] + self.first_page[0]


class Softmax(NamedTuple):
    """Running softmax of a warpgroup's rows: weighted values [64, h], largest score and sum of weights [64] each.

    Scores are in units of log2: 2**score is one instruction.
    """

    values: jax.Array
    largest: jax.Array
    total: jax.Array


def tile_columns(columns: int, dtype) -> int:
    """Columns of a tile of shared memory: as many of `columns` as one swizzle pattern spans."""
    bits = 8 * jnp.dtype(dtype).itemsize
    return 8 * plgpu.find_swizzle(columns * bits) // bits


def tiled(shape: tuple[int, ...], dtype, rows: int = 8) -> Any:
    """Shared memory of `shape` in tiles of `rows`, swizzled against bank conflicts.

    Tiles are what the TMA fills and empties: 8 rows for operands of wgmma, 1 where a copy may begin at any row.
    """
    columns = tile_columns(shape[-1], dtype)
    tiling = plgpu.TilingTransform((rows, columns))  # pyright: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(columns * jnp.dtype(dtype).itemsize)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM(shape, dtype, transforms=(tiling, swizzle))


def ring_scratch(static: Static, consumers: int) -> Ring:
    """What to allocate for the `Ring` that the TMA fills and `consumers` warpgroups read."""
    return new_ring(static, static.kv_dtype, slots=static.stages, arrivals=static.boxes, consumers=consumers)


def new_ring(static: Static, dtype, *, slots: int, arrivals: int, consumers: int) -> Ring:
    """A `Ring` without factors whose slots are full after `arrivals` and free after `consumers`."""
    blocks = tiled((slots, static.block_tokens, static.head_size), dtype)
    k_full = plgpu.Barrier(num_arrivals=arrivals, num_barriers=slots)
    v_full = plgpu.Barrier(num_arrivals=arrivals, num_barriers=slots + 1)
    free = plgpu.Barrier(num_arrivals=consumers, num_barriers=slots)
    return Ring(blocks, blocks, k_full, v_full, free, free)


def walk(items_ref: Ref, count_ref: Ref, heads: int, per_item: Callable[..., Any]) -> None:
    """Calls `per_item(columns, head, fetched)` for every n-th (item, head), if there are n thread blocks.

    Args:
      items_ref, count_ref: the two arrays of a `gpu_work.WorkList`.
      heads: heads of an item; they are neighbours, so that blocks which run together read what lies together.
      per_item: takes the item's columns, the head, and how many KV blocks went through the ring before; returns how
        many have after.
    """
    block, blocks = lax.axis_index("block"), lax.axis_size("block")

    end = count_ref[0] * heads

    def step(carry):
        index, fetched = carry
        item = lax.div(index, heads)
        columns = tuple(items_ref[item, column] for column in range(items_ref.shape[1]))
        return index + blocks, per_item(columns, lax.rem(index, heads), fetched)

    lax.while_loop(lambda carry: carry[0] < end, step, (jnp.int32(block), jnp.int32(0)))


def open_ring(ring: Ring, slots: int) -> None:
    """A consumer says that every slot is free."""
    for slot in range(slots):
        plgpu.barrier_arrive(ring.k_free.at[slot])
        plgpu.barrier_arrive(ring.v_free.at[slot])


def drain(ring: Ring, slots: int, static: Static) -> None:
    """Who fills a ring sees it all freed, for the interpreter's sake: on a GPU the barriers' addresses would spill."""
    if static.interpreted:
        for slot in range(slots):
            plgpu.barrier_wait(ring.k_free.at[slot])
            plgpu.barrier_wait(ring.v_free.at[slot])


def fetch_blocks(
    kv_ref: Ref, pages: PageRow, head, begin, end, fetched, ring: Ring, static: Static, cleans: bool = False
):
    """Fetches the blocks of positions `[begin, end)` of one KV head, in order.

    Pages that hold none of these positions are not touched: their place in a block is filled with the nearest page
    that does, which costs no traffic beyond L2. Masks hide it.

    Args:
      kv_ref: the pool, [P, p, K, 2, h].
      pages: the sequence's.
      head: KV head.
      begin, end: positions, `begin < end` or nothing to do.
      fetched: blocks that went through the ring before these.
      ring, static: see there.
      cleans: whether values outside `[begin, end)` are zeroed before their slot is said to be full, which holds the
        pipeline up for one TMA latency; otherwise consumers do that.

    Returns:
      Blocks that have gone through the ring now.
    """
    first, last = static.span(begin, end)

    def source(position):
        page = pages.page(position, begin, end, static)
        offset = pl.multiple_of(lax.rem(position, static.page_tokens), static.box_tokens)
        return kv_ref.at[page, pl.ds(offset, static.box_tokens), head]

    def block(index, fetched):
        slot = lax.rem(fetched, static.stages)
        # Page ids are read before the wait, which hides their latency.
        boxes = [source(index * static.block_tokens + at) for at in range(0, static.block_tokens, static.box_tokens)]
        plgpu.barrier_wait(ring.k_free.at[slot])
        _copy([box.at[:, 0] for box in boxes], ring.k.at[slot], ring.k_full.at[slot], static)
        plgpu.barrier_wait(ring.v_free.at[slot])
        # One copy for both cases: a second would cost registers that the fetcher of h = 256 does not have.
        edge = static.edge(index, begin, end) if cleans else False
        full = jnp.where(edge, static.stages, slot) if cleans else slot
        _copy([box.at[:, 1] for box in boxes], ring.v.at[slot], ring.v_full.at[full], static)
        if cleans:
            pl.when(edge)(lambda: clean(slot, index))
        return fetched + 1

    def clean(slot, index):
        plgpu.barrier_wait(ring.v_full.at[static.stages])
        zero_outside(ring.v.at[slot], index, begin, end, static)
        for _ in range(static.boxes):
            plgpu.barrier_arrive(ring.v_full.at[slot])

    return lax.fori_loop(first, last, block, fetched)


def _copy(boxes: list[Ref], slot_ref: Ref, full: Ref, static: Static) -> None:
    """Starts a copy of each box to its place in a slot; each arrives on `full` when it is there."""
    for number, box in enumerate(boxes):
        plgpu.copy_gmem_to_smem(box, slot_ref.at[pl.ds(number * static.box_tokens, static.box_tokens)], full)


def empty(static: Static) -> Softmax:
    """A softmax that has seen nothing."""
    rows = plgpu.Layout.WGMMA.reduce(1)
    return Softmax(
        plgpu.layout_cast(jnp.zeros((ROWS, static.head_size), jnp.float32), plgpu.Layout.WGMMA),
        plgpu.layout_cast(jnp.full((ROWS,), HIDDEN, jnp.float32), rows),
        plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), rows),
    )


def attend_block(
    softmax: Softmax,
    q_s: Ref,
    p_s: Ref | None,
    slot,
    ring: Ring,
    static: Static,
    mask: Callable[[jax.Array], jax.Array],
    clean: Callable[[Ref], None] | None = None,
) -> Softmax:
    """Adds the block in `slot` to a softmax, and frees the slot.

    Args:
      softmax: of the blocks before.
      q_s: queries in shared memory in slabs of columns, [slabs, 64, h / slabs].
      p_s: where weights go under the interpreter, [64, block_tokens]; None on a GPU.
      slot: of the ring.
      ring, static: see there.
      mask: makes scores [64, block_tokens] that do not count `HIDDEN`.
      clean: makes the values in a slot finite wherever no query looks; None where they are.
    """
    plgpu.barrier_wait(ring.k_full.at[slot])

    def scores(accumulator):
        for slab in range(static.slabs):
            part = pl.ds(slab * static.columns, static.columns)
            plgpu.wgmma(accumulator, q_s.at[slab], ring.k.at[slot, :, part].transpose((1, 0)))
        return accumulator[...]

    s = pl.run_scoped(scores, plgpu.WGMMAAccumulatorRef((ROWS, static.block_tokens), jnp.float32))
    s *= static.score_factor if ring.k_factors is None else _along_columns(ring.k_factors.at[slot], s.shape)
    plgpu.barrier_arrive(ring.k_free.at[slot])
    s = mask(_capped(s, static))
    largest = jnp.maximum(softmax.largest, s.max(axis=1))
    rescale = jnp.exp2(softmax.largest - largest)
    weights = jnp.exp2(s - _along_rows(largest, s.shape))
    total = softmax.total * rescale + weights.sum(axis=1)
    values = softmax.values * _along_rows(rescale, softmax.values.shape)
    if ring.v_factors is None:
        weights = _left_operand(weights.astype(static.dtype), p_s)
        plgpu.barrier_wait(ring.v_full.at[slot])
    else:
        plgpu.barrier_wait(ring.v_full.at[slot])
        weights *= _along_columns(ring.v_factors.at[slot], weights.shape)
        weights = _left_operand(weights.astype(static.dtype), p_s)
    if clean is not None:
        clean(ring.v.at[slot])
    values = _add_product(values, weights, ring.v.at[slot], static)
    plgpu.barrier_arrive(ring.v_free.at[slot])
    return Softmax(values, largest, total)


def skip_blocks(first, last, fetched, ring: Ring, static: Static) -> None:
    """Frees blocks `[first, last)`, which other consumers attend to.

    Args:
      first, last: the first block, and the one after the last.
      fetched: blocks that went through the ring before block 0 would have.
      ring, static: see there.
    """

    def skip(index, _):
        slot = lax.rem(fetched + index, static.slots)
        plgpu.barrier_wait(ring.k_full.at[slot])
        plgpu.barrier_arrive(ring.k_free.at[slot])
        plgpu.barrier_wait(ring.v_full.at[slot])
        plgpu.barrier_arrive(ring.v_free.at[slot])

    lax.fori_loop(first, last, skip, None)


def normalised(softmax: Softmax) -> jax.Array:
    """The attended values, [64, h]; zeros where nothing was seen."""
    total = jnp.where(softmax.total > 0, softmax.total, 1.0)
    return softmax.values * _along_rows(1 / total, softmax.values.shape)


def indices(static: Static, axis: int) -> jax.Array:
    """Row (axis 0) or column (axis 1) of each score of a block, [64, block_tokens]."""
    return plgpu.broadcasted_iota(jnp.int32, (ROWS, static.block_tokens), axis, layout=plgpu.Layout.WGMMA)


def zero_outside(v_slot: Ref, index, begin, end, static: Static) -> None:
    """Zeros the values of block `index` outside positions `[begin, end)`: a hidden weight is 0, and 0 x NaN is NaN."""
    rows, columns = 32, static.columns  # at a time: few registers
    layout = plgpu.Layout.SMEM_GMEM_COPY((rows, columns), static.dtype, columns * jnp.dtype(static.dtype).itemsize)

    def part(number, _):
        row = pl.multiple_of(lax.div(number, static.slabs) * rows, rows)
        column = pl.multiple_of(lax.rem(number, static.slabs) * columns, columns)
        position = plgpu.broadcasted_iota(jnp.int32, (rows, columns), 0, layout=layout)
        position += index * static.block_tokens + row
        part = v_slot.at[pl.ds(row, rows), pl.ds(column, columns)]
        values = plgpu.load(part, layout=layout)
        part[...] = jnp.where((position >= begin) & (position < end), values, jnp.zeros_like(values))

    lax.fori_loop(0, static.block_tokens // rows * static.slabs, part, None)
    plgpu.commit_smem()


def _capped(s: jax.Array, static: Static) -> jax.Array:
    """Scores in units of log2, capped."""
    if static.soft_cap is None:
        return s
    # tanh x = 1 - 2 / (1 + e^2x). The hardware's own tanh is good to 2**-11 only: 0.02 on scores capped at 50.
    return (static.soft_cap * LOG2_E) * (1 - 2 / (1 + jnp.exp2(s)))


def _left_operand(weights: jax.Array, p_s: Ref | None) -> Any:
    """Weights as wgmma takes them: in registers, or by way of `p_s`."""
    if p_s is None:
        return weights
    p_s[...] = weights
    plgpu.commit_smem()
    return p_s


def _add_product(values: jax.Array, weights: Any, v_slot: Ref, static: Static) -> jax.Array:
    """`values` + `weights` @ V, in place on a GPU."""
    if not static.interpreted:
        in_place: Any = pl.run_state(lambda accumulator: plgpu.wgmma(accumulator, weights, v_slot))
        return in_place(plgpu.WGMMAAccumulatorRef.init(values))

    def product(accumulator):
        plgpu.wgmma(accumulator, weights, v_slot)
        return accumulator[...]

    return values + pl.run_scoped(product, plgpu.WGMMAAccumulatorRef((ROWS, static.head_size), jnp.float32))


def _along_rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A value per row as an array of `shape`."""
    return lax.broadcast_in_dim(x, shape, [0])


def _along_columns(factors_s: Ref, shape: tuple[int, ...]) -> jax.Array:
    """A value per column, in shared memory, as an array of `shape`."""
    factors = plgpu.load(factors_s, layout=plgpu.Layout.WGMMA.reduce(0))
    return lax.broadcast_in_dim(factors, shape, [1])
