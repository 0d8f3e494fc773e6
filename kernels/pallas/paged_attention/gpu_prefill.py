"""The prefill kernel on Hopper: causal attention of prompt chunks laid end to end.

A tile is 128 consecutive queries of one chunk and one head; two warpgroups attend to 64 of them each, over the same
blocks, and a third fetches. Each skips blocks that only the other sees, but attends to them, masked, where h = 256. A
fourth converts pages of 8 bits; `consumers` says where one attends alone. As many thread blocks as the chip runs at
once each take every n-th (tile, head), heads of a tile next to each other because a group of them shares its KV through
L2.

Rows of a tile beyond the chunk's end hold the next chunk's queries. They are computed with the rest, at no cost, and
not written: the last tile of a chunk is copied out in powers of two. Padding tokens are tiles that see nothing, which
gives their zeros.

Next: `gpu_pipeline`, `gpu_work`.
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
from kernels.pallas.paged_attention.gpu_pipeline import ROWS, PageRow, Ref, Ring, Softmax, Static
from kernels.pallas.paged_attention.gpu_work import WorkList

# Of a thread of a consumer, the fetcher and the converter. Together they have what they start with: all threads the
# same, and 64 Ki in all.
REGISTERS = 232, 40
CONVERTING_REGISTERS, HEAD_256_CONVERTING_REGISTERS = (184, 40, 104), (256, 40, 208)
STARTING_REGISTERS = 128  # with four warpgroups; 168 with three
# A count of results is written as it is in binary, the most rows first: a copy of n rows starts at a multiple of 2n
# rows, which is a multiple of 128 bytes, as the TMA wants, also where a row of a slab has 64.
COPIED_ROWS = tuple(ROWS >> bit for bit in range(ROWS.bit_length()))


def consumers(head_size: int, quantised: bool) -> int:
    """Warpgroups that attend: two, but one where they, a fetcher and a converter would start with too few registers.

    With four warpgroups a thread starts with 128 registers, and ptxas wants 158 for a product with 256 columns.
    """
    return 1 if quantised and head_size == 256 else 2


def tile_tokens(q_THh, kv_pages) -> int:
    """Queries of a tile."""
    return ROWS * consumers(q_THh.shape[2], q_THh.dtype != kv_pages.dtype)


def call(q_THh, pool, page_table_RN, first_page_1, work: WorkList, blocks: int, static: Static, interpret):
    """Runs the kernel.

    Args:
      q_THh: queries.
      pool: pages as in `api.prefill_attention`, and their scales if they have some.
      page_table_RN, first_page_1: as there.
      work: from `gpu_work.prefill_work_list` with tiles of `tile_tokens`.
      blocks: thread blocks to launch.
      static: what to compile for.
      interpret: what `plgpu.kernel` takes.

    Returns:
      Results [T, H, h].
    """
    attending = consumers(static.head_size, static.quantised)
    scratch = [
        _queries_scratch(attending, static),
        pipeline.tiled((attending, ROWS, static.block_tokens), static.dtype) if static.interpreted else None,
        plgpu.Barrier(num_arrivals=static.slabs, num_barriers=attending),
        pipeline.ring_scratch(static, consumers=1 if static.quantised else attending),
        gpu_convert.ring_scratch(static, attending) if static.quantised else None,
    ]
    return plgpu.kernel(
        functools.partial(_kernel, static=static),
        out_type=jax.ShapeDtypeStruct(q_THh.shape, static.dtype),
        scratch_types=scratch,
        grid=(blocks,),
        grid_names=("block",),
        num_threads=attending + (2 if static.quantised else 1),
        thread_name="warpgroup",
        kernel_name="paged_prefill",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(q_THh, *pool, page_table_RN, first_page_1, *work)


def _queries_scratch(attending: int, static: Static):
    """Queries of each consumer, and later their results, in slabs of columns as wide as a swizzle pattern.

    The TMA copies tiles of 8 rows from and to multiples of 8 only, and a chunk may start anywhere: it sees tiles of one
    row. wgmma wants tiles of 8. In a slab of one tile's width both are the same bytes; the interpreter, which has no
    tiles, gets one array for both.
    """
    shape = (attending, static.slabs, ROWS, static.columns)
    of_wgmma, of_tma = pipeline.tiled(shape, static.dtype), pipeline.tiled(shape, static.dtype, rows=1)
    return (of_wgmma,) if static.interpreted else plgpu.RefUnion(of_wgmma, of_tma)


def _kernel(q_ref, kv_ref, *refs, static: Static):
    """One thread block: its warpgroups walk the same tiles."""
    *scales_ref, page_table_ref, first_page_ref, items_ref, count_ref, out_ref = refs[:-5]
    queries, p_s, q_full, fetching, converted = refs[-5:]
    of_wgmma, of_tma = queries[0], queries[-1]
    ring = converted or fetching
    groups = q_ref.shape[1] // kv_ref.shape[2]
    warpgroup = lax.axis_index("warpgroup")
    fetcher = consumers(static.head_size, static.quantised)  # the warpgroup behind the consumers; the converter is next
    consumer_registers, fetcher_registers, *_ = _registers(static)

    walk = functools.partial(pipeline.walk, items_ref, count_ref, q_ref.shape[1])

    def pages(row):
        return PageRow(page_table_ref.at[row], first_page_ref)

    @pl.when(warpgroup < fetcher)
    def _consume():
        pipeline.open_ring(ring, static.slots)
        plgpu.set_max_registers(consumer_registers, action="increase")
        number = 0 if fetcher == 1 else warpgroup  # a 0 takes no register
        offset, p_own = number * ROWS, p_s and p_s.at[number]

        def per_tile(tile, head, fetched):
            _, token, count, position = tile
            mine = jnp.clip(count - offset, 0, ROWS)
            _load_queries(q_ref.at[:, head], token + offset, of_tma.at[number], q_full.at[number])
            first, last = own = static.span(*_seen(position, count, static))
            if static.head_size < 256:  # with 256, bounds of a consumer's own are registers too many
                own = _within(static.span(*_seen(position + offset, mine, static)), (first, last))
            before = fetched - first
            pipeline.skip_blocks(first, own[0], before, ring, static)
            softmax = _attend(of_wgmma.at[number], p_own, position + offset, own, before, ring, static)
            pipeline.skip_blocks(own[1], last, before, ring, static)
            _store(softmax, mine, of_tma.at[number], out_ref.at[:, head], token + offset)
            return before + last

        walk(per_tile)

    @pl.when(warpgroup == fetcher)
    def _fetch():
        plgpu.set_max_registers(fetcher_registers, action="decrease")

        def per_tile(tile, head, fetched):
            row, _, count, position = tile
            seen, kv_head = _seen(position, count, static), lax.div(head, groups)
            cleans = not static.quantised
            return pipeline.fetch_blocks(kv_ref, pages(row), kv_head, *seen, fetched, fetching, static, cleans)

        walk(per_tile)
        pipeline.drain(fetching, static.stages, static)

    if static.quantised:
        convert = functools.partial(_convert, walk, groups, scales_ref[0], pages, fetching, ring, static)
        pl.when(warpgroup == fetcher + 1)(convert)


def _convert(
    walk, groups, scales_ref, pages: Callable[..., PageRow], fetching: Ring, ring: Ring, static: Static
) -> None:
    """The converter's part of `_kernel`."""
    pipeline.open_ring(fetching, static.stages)
    registers = _registers(static)[-1]
    plgpu.set_max_registers(registers, action="decrease" if registers < STARTING_REGISTERS else "increase")

    def per_tile(tile, head, fetched):
        row, _, count, position = tile
        seen, kv_head = _seen(position, count, static), lax.div(head, groups)
        return gpu_convert.convert_blocks(scales_ref, pages(row), kv_head, *seen, fetched, fetching, ring, static)

    walk(per_tile)
    pipeline.drain(ring, static.slots, static)


def _registers(static: Static) -> tuple[int, ...]:
    """Registers of a thread of a consumer, of the fetcher, and of the converter if there is one."""
    if not static.quantised:
        return REGISTERS
    return HEAD_256_CONVERTING_REGISTERS if static.head_size == 256 else CONVERTING_REGISTERS


def _seen(position, count, static: Static):
    """Positions `[begin, end)` that any of `count` queries from `position` on sees; empty where there are none."""
    begin = jnp.int32(0) if static.window is None else jnp.maximum(position - static.window + 1, 0)
    return begin, jnp.where(count > 0, jnp.maximum(position + count, 0), begin)


def _within(span, other):
    """The part of a span of blocks that lies in another."""
    end = jnp.clip(span[1], *other)
    return jnp.clip(span[0], other[0], end), end


def _attend(q_s: Ref, p_s: Ref | None, position, blocks, fetched, ring: Ring, static: Static) -> Softmax:
    """Softmax of a warpgroup's queries.

    Args:
      q_s, p_s: the warpgroup's own.
      position: of its first query.
      blocks: first block that they see, and the one after the last.
      fetched: blocks that went through the ring before block 0 would have.
      ring, static: see there.
    """
    first, last = blocks

    def slot(index):
        return lax.rem(fetched + index, static.slots)

    def visible(index):
        key = pipeline.indices(static, axis=1)
        query = pipeline.indices(static, axis=0) + (position - index * static.block_tokens)
        return key <= query if static.window is None else (key <= query) & (key > query - static.window)

    def block(index, softmax):
        def hide(s):
            return jnp.where(visible(index), s, pipeline.HIDDEN)

        def mask(s):
            if static.window is not None:
                return hide(s)
            # All queries see the blocks before the first one's: a mask there would be a tenth of the work.
            return lax.cond(index < lax.div(position + 1, static.block_tokens), lambda s: s, hide, s)

        return pipeline.attend_block(softmax, q_s, p_s, slot(index), ring, static, mask)

    return lax.fori_loop(first, last, block, pipeline.empty(static))


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
