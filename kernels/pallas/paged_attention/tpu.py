"""Paged attention on TPU: decode and prefill are one Mosaic kernel, given tiles of one token or of many.

Queries are laid out `[tiles, K, rows, h]`: the Q G queries that share a KV head are the rows of a matrix, padded to
whole sublanes. The page table and the work list are prefetched into scalar memory (1 MiB), which bounds rows x pages.

Costs given to XLA are those of the worst case that the shapes allow, with every page of the table in use: lengths are
not known when a program is compiled.

Contract: `api`. Next: `tpu_work` (who meets what), `tpu_kernel` (the kernel), `tpu_tuning` (block sizes).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from kernels.pallas.paged_attention import tpu_kernel, tpu_tuning, tpu_work
from kernels.pallas.paged_attention.tpu_tuning import Blocks
from nanoserve.specs.errors import ConfigError

SCALAR_MEMORY_BYTES = 2**20
SUBLANES = 8


def decode_attention(
    q_BHh: Float[Array, "B H h"],
    kv_pages: Float[Array, "P p K 2 h"],
    page_table_BN: Int32[Array, "B N"],
    kv_lens_B: Int32[Array, " B"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    blocks: Blocks | None = None,
    interpret=False,
) -> Float[Array, "B H h"]:
    """See `api.decode_attention`.

    Args:
      q_BHh, kv_pages, page_table_BN, kv_lens_B, scale, window, soft_cap: see there.
      blocks: sizes to use instead of the tuned ones.
      interpret: what `pallas_call` takes; `compat.tpu_interpreter()` to run on a CPU.

    Raises:
      ConfigError: where the page table does not fit in scalar memory.
    """
    B, groups = q_BHh.shape[0], q_BHh.shape[1] // kv_pages.shape[2]
    blocks = blocks or tpu_tuning.decode_blocks(kv_pages, page_table_BN.shape[1])
    work = tpu_work.decode_work(kv_lens_B, blocks.cores, window)
    static = _static(blocks, kv_pages, page_table_BN, groups, interpret, scale, window, soft_cap)
    q = _tiled(q_BHh, work.shape[0] * work.shape[2], static)
    return _untiled(_call("paged_decode", work, page_table_BN, q, kv_pages, static, interpret), B, static)


def prefill_attention(
    q_THh: Float[Array, "T H h"],
    kv_pages: Float[Array, "P p K 2 h"],
    page_table_RN: Int32[Array, "R N"],
    kv_lens_R: Int32[Array, " R"],
    cu_q_lens: Int32[Array, " R+1"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    blocks: Blocks | None = None,
    interpret=False,
) -> Float[Array, "T H h"]:
    """See `api.prefill_attention`, and `decode_attention` here for `blocks`, `interpret` and errors."""
    T, groups = q_THh.shape[0], q_THh.shape[1] // kv_pages.shape[2]
    blocks = blocks or tpu_tuning.prefill_blocks(kv_pages, page_table_RN.shape[1], groups, T)
    tiles = -(-T // (blocks.tile_tokens * blocks.cores)) * blocks.cores
    work = tpu_work.prefill_work(kv_lens_R, cu_q_lens, tiles, blocks.tile_tokens, blocks.cores, window)
    static = _static(blocks, kv_pages, page_table_RN, groups, interpret, scale, window, soft_cap)
    q = _tiled(q_THh, tiles, static)
    return _untiled(_call("paged_prefill", work, page_table_RN, q, kv_pages, static, interpret), T, static)


def cost(static: tpu_kernel.Static, items: int, q, kv_pages) -> pl.CostEstimate:
    """What the call costs if every item sees as much as the page table, or the window, allows.

    Rows that pad a tile, and positions that pad a block, are computed and therefore counted.

    Args:
      static: the kernel's sizes.
      items: work items of all cores.
      q: queries in tiles, [tiles, K, rows, h].
      kv_pages: the pool.
    """
    _, K, rows, h = q.shape
    pages = static.most(static.page_tokens, static.table_pages)
    positions = static.block_tokens * static.most(static.block_tokens, -(-static.table_pages // static.block_pages))
    scores = items * K * rows * positions
    page_bytes = kv_pages.dtype.itemsize * math.prod(kv_pages.shape[1:])
    return pl.CostEstimate(
        flops=4 * scores * h,
        bytes_accessed=2 * q.size * q.dtype.itemsize + items * pages * page_bytes,
        transcendentals=scores * (1 if static.soft_cap is None else 2),
    )


def _call(name, work_CFW, page_table, q, kv_pages, static: tpu_kernel.Static, interpret):
    """The kernel over every item of the work list; `q` and the result are [tiles, K, rows, h]."""
    cores, fields, items = work_CFW.shape
    scalar_bytes = 4 * (page_table.size + work_CFW.size)
    if scalar_bytes > SCALAR_MEMORY_BYTES:
        raise ConfigError(
            f"a page table of {page_table.shape} and {cores * items} work items are {scalar_bytes} bytes, and a TPU's "
            f"scalar memory holds {SCALAR_MEMORY_BYTES}: use larger pages, fewer rows or a shorter context"
        )
    _, K, rows, h = q.shape
    tile = pl.BlockSpec((1, K, rows, h), lambda c, w, work, _: (work[c * fields * items + w], 0, 0, 0))
    running = pltpu.VMEM((K, rows, tpu_kernel.LANES), jnp.float32)
    return pl.pallas_call(
        functools.partial(tpu_kernel.kernel, static=static),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(cores, items),
            in_specs=[tile, pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=tile,
            scratch_shapes=[
                pltpu.VMEM((2, static.block_tokens, *kv_pages.shape[2:]), kv_pages.dtype),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SMEM((1,), jnp.int32),
                running,
                running,
                pltpu.VMEM((K, rows, h), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), disable_bounds_checks=True),
        cost_estimate=cost(static, cores * items, q, kv_pages),
        interpret=interpret,
        name=name,
    )(work_CFW.reshape(-1), page_table.reshape(-1), q, kv_pages)


def _static(blocks: Blocks, kv_pages, page_table, groups: int, interpret, scale, window, soft_cap) -> tpu_kernel.Static:
    """What the kernel is compiled for."""
    return tpu_kernel.Static(
        tile_tokens=blocks.tile_tokens,
        tile_rows=-(-blocks.tile_tokens * groups // SUBLANES) * SUBLANES,
        groups=groups,
        page_tokens=kv_pages.shape[1],
        block_pages=blocks.block_pages,
        table_pages=page_table.shape[1],
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        packed=kv_pages.dtype == jnp.bfloat16 and not isinstance(interpret, pltpu.InterpretParams),
    )


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
