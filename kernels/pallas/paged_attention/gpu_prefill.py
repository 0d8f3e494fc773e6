"""The prefill kernel on Hopper: causal attention of prompt chunks laid end to end.

A tile is 128 consecutive queries of one chunk and one head; two warpgroups attend to 64 of them each, over the same
blocks, and a third fetches. As many thread blocks as the chip runs at once each take every n-th (tile, head), heads of
a tile next to each other because a group of them shares its KV through L2.

Rows of a tile beyond the chunk's end hold the next chunk's queries. They are computed with the rest, at no cost, and
not written: the last tile of a chunk is copied out in powers of two. Padding tokens are tiles that see nothing, which
gives their zeros.

Next: `gpu_pipeline`, `gpu_work`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.pallas.paged_attention import gpu_pipeline as pipeline
from kernels.pallas.paged_attention.gpu_pipeline import ROWS, Ref, Ring, Softmax, Static
from kernels.pallas.paged_attention.gpu_work import WorkList

CONSUMERS = 2
TILE_TOKENS = CONSUMERS * ROWS
CONSUMER_REGISTERS, FETCHER_REGISTERS = 232, 40
# A count of results is written as it is in binary, the most rows first: a copy of n rows starts at a multiple of 2n rows,
# which is a multiple of 128 bytes, as the TMA wants, also where a row of a slab has 64.
COPIED_ROWS = tuple(ROWS >> bit for bit in range(ROWS.bit_length()))


def call(q_THh, kv_pages, page_table_RN, work: WorkList, blocks: int, static: Static, interpret):
    """Runs the kernel.

    Args:
      q_THh: queries.
      kv_pages, page_table_RN: as in `api.prefill_attention`.
      work: from `gpu_work.prefill_work_list` with tiles of `TILE_TOKENS`.
      blocks: thread blocks to launch.
      static: what to compile for.
      interpret: what `plgpu.kernel` takes.

    Returns:
      Results [T, H, h].
    """
    scratch = [
        _queries_scratch(static),
        pipeline.tiled((CONSUMERS, ROWS, static.block_tokens), static.dtype) if static.interpreted else None,
        plgpu.Barrier(num_arrivals=static.slabs, num_barriers=CONSUMERS),
        plgpu.Barrier(num_arrivals=static.boxes),
        pipeline.ring_scratch(static, CONSUMERS),
    ]
    return plgpu.kernel(
        functools.partial(_kernel, static=static),
        out_type=jax.ShapeDtypeStruct(q_THh.shape, static.dtype),
        scratch_types=scratch,
        grid=(blocks,),
        grid_names=("block",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        kernel_name="paged_prefill",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(q_THh, kv_pages, page_table_RN, *work)


def _queries_scratch(static: Static):
    """Queries of each consumer, and later their results, in slabs of columns as wide as a swizzle pattern.

    The TMA copies tiles of 8 rows from and to multiples of 8 only, and a chunk may start anywhere: it sees tiles of one
    row. wgmma wants tiles of 8. In a slab of one tile's width both are the same bytes; the interpreter, which has no
    tiles, gets one array for both.
    """
    shape = (CONSUMERS, static.slabs, ROWS, static.columns)
    of_wgmma, of_tma = pipeline.tiled(shape, static.dtype), pipeline.tiled(shape, static.dtype, rows=1)
    return (of_wgmma,) if static.interpreted else plgpu.RefUnion(of_wgmma, of_tma)


def _kernel(q_ref, kv_ref, page_table_ref, items_ref, count_ref, out_ref, *scratch, static: Static):
    """One thread block: its three warpgroups walk the same tiles."""
    queries, p_s, q_full, landing, ring = scratch
    of_wgmma, of_tma = queries[0], queries[-1]
    groups = q_ref.shape[1] // kv_ref.shape[2]
    warpgroup = lax.axis_index("warpgroup")

    walk = functools.partial(pipeline.walk, items_ref, count_ref, q_ref.shape[1])

    @pl.when(warpgroup < CONSUMERS)
    def _consume():
        pipeline.open_ring(ring, static)
        plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
        offset = warpgroup * ROWS
        p_own = p_s and p_s.at[warpgroup]

        def per_tile(tile, head, fetched):
            _, token, count, position = tile
            mine = jnp.clip(count - offset, 0, ROWS)
            _load_queries(q_ref.at[:, head], token + offset, of_tma.at[warpgroup], q_full.at[warpgroup])
            first, last = static.span(*_seen(position, count, static))
            own = static.span(*_seen(position + offset, mine, static))
            queries = of_wgmma.at[warpgroup]
            softmax = _attend(queries, p_own, position + offset, (first, last), own, fetched - first, ring, static)
            _store(softmax, mine, of_tma.at[warpgroup], out_ref.at[:, head], token + offset)
            return fetched + last - first

        walk(per_tile)

    @pl.when(warpgroup == CONSUMERS)
    def _fetch():
        plgpu.set_max_registers(FETCHER_REGISTERS, action="decrease")

        def per_tile(tile, head, fetched):
            row, _, count, position = tile
            begin, end = _seen(position, count, static)
            page_ids, kv_head = page_table_ref.at[row], lax.div(head, groups)
            return pipeline.fetch_blocks(kv_ref, page_ids, kv_head, begin, end, fetched, ring, static, landing)

        walk(per_tile)
        pipeline.drain(ring, static)


def _seen(position, count, static: Static):
    """Positions `[begin, end)` that any of `count` queries from `position` on sees; empty where there are none."""
    begin = jnp.int32(0) if static.window is None else jnp.maximum(position - static.window + 1, 0)
    return begin, jnp.where(count > 0, jnp.maximum(position + count, 0), begin)


def _attend(q_s: Ref, p_s: Ref | None, position, tile, own, fetched, ring: Ring, static: Static) -> Softmax:
    """Softmax of a warpgroup's queries, which start at `position`.

    Args:
      q_s, p_s: the warpgroup's own.
      position: of its first query.
      tile: first block that the tile sees, and the one after the last. All are freed here.
      own: the same for the warpgroup; blocks that only the other one sees are skipped.
      fetched: blocks that went through the ring before block 0 would have.
      ring, static: see there.
    """
    first, last = tile
    own_last = jnp.clip(own[1], first, last)
    own_first = jnp.clip(own[0], first, own_last)

    def slot(index):
        return lax.rem(fetched + index, static.stages)

    def visible(index):
        key = pipeline.indices(static, axis=1)
        query = pipeline.indices(static, axis=0) + (position - index * static.block_tokens)
        return key <= query if static.window is None else (key <= query) & (key > query - static.window)

    def skip(index, _):
        pipeline.skip_block(slot(index), ring)

    def whole(index, softmax):
        return pipeline.attend_block(softmax, q_s, p_s, slot(index), ring, static)

    def masked(index, softmax):
        return pipeline.attend_block(softmax, q_s, p_s, slot(index), ring, static, lambda: visible(index))

    softmax, own_masked = pipeline.empty(static), own_first
    lax.fori_loop(first, own_first, skip, None)
    if (
        static.window is None
    ):  # all see the blocks before the first query's: no mask there, which is a tenth of the work
        own_masked = jnp.clip(lax.div(position + 1, static.block_tokens), own_first, own_last)
        softmax = lax.fori_loop(own_first, own_masked, whole, softmax)
    softmax = lax.fori_loop(own_masked, own_last, masked, softmax)
    lax.fori_loop(own_last, last, skip, None)
    return softmax


def _load_queries(q_ref: Ref, token, q_s: Ref, q_full: Ref) -> None:
    """Queries [64, h] from `token` on to the slabs of `q_s`; those beyond the last are zeros."""
    slabs, _, columns = q_s.shape
    for slab in range(slabs):
        part = pl.ds(slab * columns, columns)
        plgpu.copy_gmem_to_smem(q_ref.at[pl.ds(token, ROWS), part], q_s.at[slab], q_full)
    plgpu.barrier_wait(q_full)


def _store(softmax: Softmax, count, out_s: Ref, out_ref: Ref, token) -> None:
    """The first `count` results to `out_ref[token:]`, by way of where the queries were."""
    values = pipeline.normalised(softmax).astype(out_s.dtype)
    slabs, _, columns = out_s.shape
    for slab in range(slabs):
        out_s.at[slab][...] = values[:, slab * columns : (slab + 1) * columns]
    plgpu.commit_smem()
    for size in COPIED_ROWS:

        @pl.when((count & size) != 0)
        def _(size=size):
            row = pl.multiple_of(count & -(2 * size), 2 * size)
            for slab in range(slabs):
                part = out_ref.at[pl.ds(token + row, size), pl.ds(slab * columns, columns)]
                plgpu.copy_smem_to_gmem(out_s.at[slab, pl.ds(row, size)], part)

    plgpu.wait_smem_to_gmem(0)  # the next queries come to the same place
