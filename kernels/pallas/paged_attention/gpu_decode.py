"""The decode kernel on Hopper: one query per sequence, KV split over thread blocks.

As many thread blocks as the chip runs at once each take every n-th (item, KV head) of the work list, heads of an item
next to each other because their KV lies next to each other. In a block one warpgroup fetches and one attends, and the
fetcher runs ahead into the next item. The G queries of a KV head are the first rows of a 64-row tile; the rows below
are never initialised, never read back, and cannot reach the others, since a row of a matrix product depends on its own
row of the left operand.

Each item leaves a normalised result and the log2 of its softmax's sum; `gpu` joins a row's splits.
Next: `gpu_pipeline`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.pallas.paged_attention import gpu_convert
from kernels.pallas.paged_attention import gpu_pipeline as pipeline
from kernels.pallas.paged_attention.gpu_pipeline import ROWS, PageRow, Ref, Ring, Static
from kernels.pallas.paged_attention.gpu_work import WorkList

CONSUMER, FETCHER, CONVERTER = 0, 1, 2
CONSUMER_REGISTERS, FETCHER_REGISTERS, CONVERTER_REGISTERS = 240, 40, 200


def call(
    q_BKGh, pool, page_table_BN, first_page_1, work: WorkList, splits: int, blocks: int, static: Static, interpret
):
    """Runs the kernel.

    Args:
      q_BKGh: queries, G padded to a multiple of 8.
      pool: pages as in `api.decode_attention`, and their scales if they have some.
      page_table_BN, first_page_1: as there.
      work: from `gpu_work.decode_work_list`.
      splits: most splits of a row.
      blocks: thread blocks to launch.
      static: what to compile for.
      interpret: what `plgpu.kernel` takes.

    Returns:
      Per split of each row and head [B, S, K]: results [., G, h] and log2 of the sums [., G], float32. Splits that no
      item names are left as they were found.
    """
    B, K, G, h = q_BKGh.shape
    results = pipeline.tiled((ROWS, h), jnp.float32), plgpu.SMEM((ROWS,), jnp.float32)
    scratch = [
        plgpu.RefUnion(pipeline.tiled((static.slabs, ROWS, static.columns), static.dtype), results),
        pipeline.tiled((ROWS, static.block_tokens), static.dtype) if static.interpreted else None,
        plgpu.Barrier(num_arrivals=static.slabs),
        pipeline.ring_scratch(static, consumers=1),
        gpu_convert.ring_scratch(static, consumers=1) if static.quantised else None,
    ]
    return plgpu.kernel(
        functools.partial(_kernel, static=static),
        out_type=[
            jax.ShapeDtypeStruct((B, splits, K, G, h), jnp.float32),
            jax.ShapeDtypeStruct((B, splits, K, G), jnp.float32),
        ],
        scratch_types=scratch,
        grid=(blocks,),
        grid_names=("block",),
        num_threads=3 if static.quantised else 2,
        thread_name="warpgroup",
        kernel_name="paged_decode",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(q_BKGh, *pool, page_table_BN, first_page_1, *work)


def _kernel(q_ref, kv_ref, *refs, static: Static):
    """One thread block: its warpgroups walk the same items."""
    *scales_ref, page_table_ref, first_page_ref, items_ref, count_ref, out_ref, lse_ref = refs[:-5]
    (q_s, (out_s, lse_s)), p_s, q_full, fetching, converted = refs[-5:]
    ring = converted or fetching
    walk = functools.partial(pipeline.walk, items_ref, count_ref, q_ref.shape[1])

    def pages(row):
        return PageRow(page_table_ref.at[row], first_page_ref)

    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == CONSUMER)
    def _consume():
        pipeline.open_ring(ring, static.slots)
        plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")

        def per_item(item, head, fetched):
            row, split, begin, end = item
            _load_queries(q_ref.at[row, head], q_s, q_full)
            softmax, fetched = _attend(q_s, p_s, begin, end, fetched, ring, static)
            _store(softmax, out_s, lse_s, out_ref.at[row, split, head], lse_ref.at[row, split, head])
            return fetched

        walk(per_item)

    @pl.when(warpgroup == FETCHER)
    def _fetch():
        plgpu.set_max_registers(FETCHER_REGISTERS, action="decrease")

        def per_item(item, head, fetched):
            row, _, begin, end = item
            return pipeline.fetch_blocks(kv_ref, pages(row), head, begin, end, fetched, fetching, static)

        walk(per_item)
        pipeline.drain(fetching, static.stages, static)

    if static.quantised:
        convert = functools.partial(_convert, walk, scales_ref[0], pages, fetching, ring, static)
        pl.when(warpgroup == CONVERTER)(convert)


def _convert(walk, scales_ref, pages: Callable[..., PageRow], fetching: Ring, ring: Ring, static: Static) -> None:
    """The converter's part of `_kernel`."""
    pipeline.open_ring(fetching, static.stages)
    plgpu.set_max_registers(CONVERTER_REGISTERS, action="increase")

    def per_item(item, head, fetched):
        row, _, begin, end = item
        return gpu_convert.convert_blocks(scales_ref, pages(row), head, begin, end, fetched, fetching, ring, static)

    walk(per_item)
    pipeline.drain(ring, static.slots, static)


def _load_queries(q_ref: Ref, q_s: Ref, q_full: Ref) -> None:
    """Queries [G, h] of one head to the first rows of every slab of `q_s`."""
    slabs, _, columns = q_s.shape
    for slab in range(slabs):
        part = q_ref.at[:, pl.ds(slab * columns, columns)]
        plgpu.copy_gmem_to_smem(part, q_s.at[slab, pl.ds(0, q_ref.shape[0])], q_full)
    plgpu.barrier_wait(q_full)


def _attend(q_s: Ref, p_s: Ref | None, begin, end, fetched, ring: Ring, static: Static):
    """Softmax over positions `[begin, end)`, and the blocks that have gone through the ring after them."""
    first, last = static.span(begin, end)

    def block(index, softmax):
        slot = lax.rem(fetched + index - first, static.slots)

        def mask(s):
            column, low = pipeline.indices(static, axis=1), index * static.block_tokens
            return jnp.where((column >= begin - low) & (column < end - low), s, pipeline.HIDDEN)

        def clean(v_slot):
            if static.quantised:  # by the converter
                return

            @pl.when(static.edge(index, begin, end))
            def _():
                pipeline.zero_outside(v_slot, index, begin, end, static)

        return pipeline.attend_block(softmax, q_s, p_s, slot, ring, static, mask, clean)

    softmax = lax.fori_loop(first, last, block, pipeline.empty(static))
    return softmax, fetched + last - first


def _store(softmax: pipeline.Softmax, out_s: Ref, lse_s: Ref, out_ref: Ref, lse_ref: Ref) -> None:
    """Result [G, h] and log2 of the sum [G] to global memory."""
    heads = pl.ds(0, out_ref.shape[0])
    out_s[...] = pipeline.normalised(softmax)
    lse_s[...] = softmax.largest + jnp.log2(softmax.total)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out_s.at[heads], out_ref)
    plgpu.copy_smem_to_gmem(lse_s.at[heads], lse_ref)
    plgpu.wait_smem_to_gmem(0)  # the next queries come to the same place
