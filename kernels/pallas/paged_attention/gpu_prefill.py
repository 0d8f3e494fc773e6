"""The prefill kernel on Hopper: causal attention of prompt chunks laid end to end.

A tile is 128 consecutive queries of one chunk and one head; two warpgroups attend to 64 of them each, over the same
blocks, and a third fetches. As many thread blocks as the chip runs at once each take every n-th (tile, head), heads of
a tile next to each other because a group of them shares its KV through L2.

Rows of a tile beyond the chunk's end hold the next chunk's queries. They are computed with the rest, at no cost, and
not written: the last tile of a chunk is copied out a row at a time. Padding tokens are tiles that see nothing, which
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
# Columns copied in or out at a time, by head size: the largest is short of registers. Rows of 96 do not start at
# multiples of 128 bytes, as the TMA wants.
STAGED_COLUMNS = {64: 64, 128: 128, 256: 64}


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
        pipeline.tiled((CONSUMERS, ROWS, static.head_size), static.dtype),
        pipeline.tiled((CONSUMERS, ROWS, static.block_tokens), static.dtype) if static.interpreted else None,
        pipeline.tiled((CONSUMERS, ROWS, STAGED_COLUMNS[static.head_size]), static.dtype, rows=1),
        plgpu.Barrier(num_barriers=CONSUMERS),
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


def _kernel(q_ref, kv_ref, page_table_ref, items_ref, count_ref, out_ref, *scratch, static: Static):
    """One thread block: its three warpgroups walk the same tiles."""
    q_s, p_s, staged_s, q_full, landing, ring = scratch
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
            staged, queries = staged_s.at[warpgroup], q_s.at[warpgroup]
            _load_queries(q_ref.at[:, head], token + offset, queries, staged, q_full.at[warpgroup])
            first, last = static.span(*_seen(position, count, static))
            own = static.span(*_seen(position + offset, mine, static))
            softmax = _attend(queries, p_own, position + offset, (first, last), own, fetched - first, ring, static)
            _store(softmax, mine, staged, out_ref.at[:, head], token + offset)
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


def _load_queries(q_ref: Ref, token, q_s: Ref, staged_s: Ref, q_full: Ref) -> None:
    """Queries [64, h] from `token` on to `q_s`; those beyond the last are zeros.

    They come by way of tiles of one row: the TMA fills those of 8 from multiples of 8 only, and a chunk may start
    anywhere.
    """
    columns = staged_s.shape[1]
    for column in range(0, q_s.shape[1], columns):
        part = pl.ds(column, columns)
        plgpu.copy_gmem_to_smem(q_ref.at[pl.ds(token, ROWS), part], staged_s, q_full)
        plgpu.barrier_wait(q_full)
        q_s.at[:, part][...] = plgpu.load(staged_s, layout=plgpu.Layout.WGMMA)
        plgpu.commit_smem()  # before wgmma reads it, and before the next part comes to where this one was read


def _store(softmax: Softmax, count, staged_s: Ref, out_ref: Ref, token) -> None:
    """The first `count` results to `out_ref[token:]`."""
    values = pipeline.normalised(softmax).astype(staged_s.dtype)
    columns = staged_s.shape[1]
    for column in range(0, values.shape[1], columns):
        part = pl.ds(column, columns)
        staged_s[...] = values[:, column : column + columns]
        plgpu.commit_smem()

        @pl.when(count == ROWS)
        def _(part=part):
            plgpu.copy_smem_to_gmem(staged_s, out_ref.at[pl.ds(token, ROWS), part])

        @pl.when(count < ROWS)
        def _(part=part):
            def copy_row(row, _):
                plgpu.copy_smem_to_gmem(staged_s.at[pl.ds(row, 1)], out_ref.at[pl.ds(token + row, 1), part])

            lax.fori_loop(0, count, copy_row, None)

        plgpu.wait_smem_to_gmem(0)
