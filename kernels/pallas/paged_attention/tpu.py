"""Paged attention on TPU: decode and prefill are one Mosaic kernel, given tiles of one token or of many.

Queries are laid out `[tiles, K, rows, h]`: the Q G queries that share a KV head are the rows of a matrix, padded to
whole sublanes. The page table and the work list are prefetched into scalar memory (1 MiB), which bounds rows x pages.

The kernel reads the pool as it lies in HBM, in row-major order of `[P, p, K, 2, h]` for 2 and 4-byte elements and of
`[P, K, 2, p, h]` for 1-byte ones. A program whose pool lies otherwise copies all of it at every call: give the argument
a `jax.experimental.layout.Format`. Only for 2-byte elements and h a multiple of 128 does XLA choose that by itself. A
row of h is padded to 128 lanes, so that h = 64 takes the memory of 128.

Costs given to XLA are those of the worst case that the shapes allow, with every page of the table in use: lengths are
not known when a program is compiled.

Contract: `api`. Next: `tpu_work` (who meets what), `tpu_kernel`, `tpu_write` and `tpu_write8` (new tokens),
`tpu_tuning` (block sizes).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32, Num

from kernels.pallas.paged_attention import tpu_buffers, tpu_kernel, tpu_tuning, tpu_work, tpu_write, tpu_write8
from kernels.pallas.paged_attention.tpu_buffers import LANES
from kernels.pallas.paged_attention.tpu_tuning import Blocks
from kernels.pallas.paged_attention.tpu_work import Work

SCALAR_MEMORY_BYTES = 2**20
WORK_ITEM_INTEGERS = len(tpu_work.Field)
SUBLANES = 8
QUERY_TYPES = ("bfloat16", "float32")
QUANTISED_TYPES = ("int8", "float8_e4m3fn", "float8_e5m2")


def decode_attention(
    q_BHh: Float[Array, "B H h"],
    kv_pages: Num[Array, "P p K 2 h"],
    page_table_BN: Int32[Array, "B N"],
    kv_lens_B: Int32[Array, " B"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: Float[Array, "P p K 2"] | None = None,
    first_page: Int32[Array, ""] | int = 0,
    work: Work | None = None,
    blocks: Blocks | None = None,
    interpret: Any = False,
) -> Float[Array, "B H h"]:
    """See `api.decode_attention`.

    Args:
      q_BHh, kv_pages, page_table_BN, kv_lens_B, scale, window, soft_cap, first_page, work: see there.
      kv_scales: as there; best laid out as `[P, 2, K, p]`.
      blocks: sizes to use instead of the tuned ones.
      interpret: what `pallas_call` takes; `compat.tpu_interpreter()` to run on a CPU.
    """
    B, N, groups = *page_table_BN.shape, q_BHh.shape[1] // kv_pages.shape[2]
    blocks = blocks or tpu_tuning.decode_blocks(kv_pages, N)
    static = _static(blocks, kv_pages, N, groups, interpret, scale=scale, window=window, soft_cap=soft_cap)
    work = work or decode_work(q_BHh, kv_pages, page_table_BN, kv_lens_B, window=window, blocks=blocks)
    q = _tiled(q_BHh, work.items_CFW.shape[0] * work.items_CFW.shape[2], static)
    out = _call("paged_decode", static, work, first_page, q, kv_pages, kv_scales, most_items=B, interpret=interpret)
    return _untiled(out, B, static)


def prefill_attention(
    q_THh: Float[Array, "T H h"],
    kv_pages: Num[Array, "P p K 2 h"],
    page_table_RN: Int32[Array, "R N"],
    kv_lens_R: Int32[Array, " R"],
    cu_q_lens: Int32[Array, " R+1"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: Float[Array, "P p K 2"] | None = None,
    first_page: Int32[Array, ""] | int = 0,
    work: Work | None = None,
    blocks: Blocks | None = None,
    interpret: Any = False,
) -> Float[Array, "T H h"]:
    """See `api.prefill_attention`, and `decode_attention` here for the other arguments."""
    R, N, groups = *page_table_RN.shape, q_THh.shape[1] // kv_pages.shape[2]
    T = q_THh.shape[0]
    blocks = blocks or tpu_tuning.prefill_blocks(kv_pages, N, groups, T)
    static = _static(blocks, kv_pages, N, groups, interpret, scale=scale, window=window, soft_cap=soft_cap)
    work = work or prefill_work(q_THh, kv_pages, page_table_RN, kv_lens_R, cu_q_lens, window=window, blocks=blocks)
    tiles = _tiles(T, blocks)
    q = _tiled(q_THh, tiles, static)
    items = tiles + R - 1  # a tile has one more for each chunk that starts inside it
    out = _call(
        "paged_prefill", static, work, first_page, q, kv_pages, kv_scales, most_items=items, interpret=interpret
    )
    return _untiled(out, T, static)


def decode_work(q_BHh, kv_pages, page_table_BN, kv_lens_B, *, window: int | None = None, blocks: Blocks | None = None):
    """See `api.decode_work`, and `decode_attention` here for `blocks`."""
    del q_BHh
    blocks = blocks or tpu_tuning.decode_blocks(kv_pages, page_table_BN.shape[1])
    return _work(tpu_work.decode_work(kv_lens_B, blocks.cores, window), page_table_BN, kv_pages)


def prefill_work(
    q_THh, kv_pages, page_table_RN, kv_lens_R, cu_q_lens, *, window: int | None = None, blocks: Blocks | None = None
):
    """See `api.prefill_work`, and `decode_attention` here for `blocks`."""
    T, groups = q_THh.shape[0], q_THh.shape[1] // kv_pages.shape[2]
    blocks = blocks or tpu_tuning.prefill_blocks(kv_pages, page_table_RN.shape[1], groups, T)
    items = tpu_work.prefill_work(kv_lens_R, cu_q_lens, _tiles(T, blocks), blocks.tile_tokens, blocks.cores, window)
    return _work(items, page_table_RN, kv_pages)


def _work(items_CFW, page_table, kv_pages) -> Work:
    """Page numbers are clipped here, once a step; checking each copy would cost more bundles than starting it."""
    return Work(items_CFW, jnp.clip(page_table, 0, kv_pages.shape[0] - 1))


def _tiles(tokens: int, blocks: Blocks) -> int:
    """Tiles of a prefill call; every core has as many."""
    return -(-tokens // (blocks.tile_tokens * blocks.cores)) * blocks.cores


def cost(static: tpu_kernel.Static, most_items: int, q, kv_pages, kv_scales) -> pl.CostEstimate:
    """What the call costs if every item sees as much as the page table, or the window, allows.

    What pads is computed or copied, and so is counted: rows of a tile, positions of a block, lanes of a short head.

    Args:
      static: the kernel's sizes.
      most_items: how many work items can see something.
      q: queries in tiles, [tiles, K, rows, h].
      kv_pages, kv_scales: the pool.
    """
    _, K, rows, h = q.shape
    p = static.page_tokens
    pages = static.most(p, static.table_pages)
    positions = static.block_tokens * static.most(static.block_tokens, -(-static.table_pages // static.block_pages))
    scores = most_items * K * rows * positions
    page_bytes = p * K * 2 * _whole_lanes(h) * kv_pages.dtype.itemsize
    if kv_scales is not None:
        page_bytes += 2 * K * _whole_lanes(p) * kv_scales.dtype.itemsize
    return pl.CostEstimate(
        flops=4 * scores * h,
        bytes_accessed=2 * q.size // h * _whole_lanes(h) * q.dtype.itemsize + most_items * pages * page_bytes,
        transcendentals=scores * (1 if static.soft_cap is None else 2),
    )


def _whole_lanes(size: int) -> int:
    return -(-size // LANES) * LANES


def _call(name, static: tpu_kernel.Static, work: Work, first_page, q, kv_pages, kv_scales, *, most_items, interpret):
    """The kernel over every item of the work list; `q` and the result are [tiles, K, rows, h]."""
    cores, fields, items = work.items_CFW.shape
    _, K, rows, h = q.shape
    tile = pl.BlockSpec((1, K, rows, h), lambda c, w, work, *_: (work[c * fields * items + w], 0, 0, 0))
    running = pltpu.VMEM((K, rows, LANES), jnp.float32)
    pool = (static.order.pool(kv_pages),)
    buffers = (pltpu.VMEM((2, *static.order.shape(static.block_tokens, K, h)), kv_pages.dtype),)
    if kv_scales is not None:
        pool += (kv_scales.transpose(0, 3, 2, 1),)
        buffers += (pltpu.VMEM((2, static.block_pages, 2, K, static.page_tokens), kv_scales.dtype),)
    return pl.pallas_call(
        functools.partial(tpu_kernel.kernel, static=static),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(cores, items),
            in_specs=[tile, tuple(pl.BlockSpec(memory_space=pl.ANY) for _ in pool)],
            out_specs=tile,
            scratch_shapes=[
                buffers,
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SMEM((1,), jnp.int32),
                running,
                running,
                pltpu.VMEM((K, rows, h), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), disable_bounds_checks=True),
        cost_estimate=cost(static, most_items, q, kv_pages, kv_scales),
        interpret=interpret,
        name=name,
    )(work.items_CFW.reshape(-1), work.page_table.reshape(-1), jnp.asarray(first_page, jnp.int32).reshape(1), q, pool)


def write_kv(
    kv_pages,
    kv_TK2h,
    pages_T,
    offsets_T,
    first_page,
    kv_scales=None,
    scales_TK2=None,
    *,
    interpret: Any = False,
):
    """See `api.write_kv`, and `decode_attention` here for `interpret`."""
    new = kv_TK2h, pages_T, offsets_T, first_page
    if kv_pages.dtype.itemsize == 1:
        return tpu_write8.write(kv_pages, *new, kv_scales, scales_TK2, interpret=interpret)
    return tpu_write.write(kv_pages, *new, interpret=interpret), None


def prefill_tiles(q_THh, kv_pages, table_pages: int) -> tuple[int, bool]:
    """Queries that share what a prefill call fetches, and whether tiles go across chunks: for `ledger`."""
    groups = q_THh.shape[1] // kv_pages.shape[2]
    return tpu_tuning.prefill_blocks(kv_pages, table_pages, groups, q_THh.shape[0]).tile_tokens, True


def why_not(q, kv_pages, page_table, kv_scales=None) -> str | None:
    """Why the kernel cannot serve a call of these shapes, or None where it can."""
    if q.dtype.name not in QUERY_TYPES:
        return f"the TPU kernel takes queries of {' or '.join(QUERY_TYPES)}, not {q.dtype}"
    if kv_pages.dtype.name not in (*QUERY_TYPES, *QUANTISED_TYPES):
        valid = ", ".join((*QUERY_TYPES, *QUANTISED_TYPES))
        return f"the TPU kernel takes pages of {valid}, not {kv_pages.dtype}"
    h = q.shape[-1]
    if h > LANES and h % LANES:
        return f"the TPU kernel takes heads of up to {LANES} or a multiple of it, not {h}"
    if kv_scales is not None and kv_pages.dtype.name not in QUANTISED_TYPES:
        return f"scales go with 8-bit pages, not with pages of {kv_pages.dtype}"
    scalar_bytes = 4 * (page_table.size + WORK_ITEM_INTEGERS * (page_table.shape[0] + q.shape[0]))
    if scalar_bytes > SCALAR_MEMORY_BYTES:
        return (
            f"a page table of {page_table.shape} and its work list take up to {scalar_bytes} bytes, and a TPU's scalar "
            f"memory holds {SCALAR_MEMORY_BYTES}: larger pages, fewer rows or a shorter context would fit"
        )
    return None


def pool_order(dtype) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """See `api.pool_order`: 8-bit pages hold the tokens of a head next to each other, four to a word."""
    return ((0, 2, 3, 1, 4) if dtype.itemsize == 1 else (0, 1, 2, 3, 4)), (0, 3, 2, 1)


def _static(blocks: Blocks, kv_pages, table_pages: int, groups: int, interpret, **options) -> tpu_kernel.Static:
    """What the kernel is compiled for."""
    return tpu_kernel.Static(
        tile_tokens=blocks.tile_tokens,
        tile_rows=-(-blocks.tile_tokens * groups // SUBLANES) * SUBLANES,
        groups=groups,
        page_tokens=kv_pages.shape[1],
        block_pages=blocks.block_pages,
        table_pages=table_pages,
        order=_order(kv_pages.dtype, interpret),
        **options,
    )


def _order(dtype, interpret) -> tpu_buffers.Plain:
    """How the kernel reads pages: the cheapest way that the chip, or the interpreter, has for the element."""
    if dtype.itemsize == 1:
        return tpu_buffers.HeadMajor()
    if dtype.itemsize == 2 and not isinstance(interpret, pltpu.InterpretParams):
        return tpu_buffers.Words()
    return tpu_buffers.Plain()


def _tiled(q_THh, tiles: int, static: tpu_kernel.Static):
    """[T, H, h] as [tiles, K, rows, h], with zeros for tokens and rows that are not there."""
    T, H, h = q_THh.shape
    Q, G = static.tile_tokens, static.groups
    q = jnp.pad(q_THh, ((0, tiles * Q - T), (0, 0), (0, 0))).reshape(tiles, Q, H // G, G, h)
    q = q.transpose(0, 2, 1, 3, 4).reshape(tiles, H // G, Q * G, h)
    return jnp.pad(q, ((0, 0), (0, 0), (0, static.tile_rows - Q * G), (0, 0)))


def _untiled(out, tokens: int, static: tpu_kernel.Static):
    """The inverse of `_tiled`."""
    tiles, K, _, h = out.shape
    Q, G = static.tile_tokens, static.groups
    out = out[:, :, : Q * G].reshape(tiles, K, Q, G, h).transpose(0, 2, 1, 3, 4)
    return out.reshape(tiles * Q, K * G, h)[:tokens]
