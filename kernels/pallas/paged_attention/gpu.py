"""Paged attention on Hopper GPUs, in Mosaic GPU: what the kernels serve, and what XLA does before and after them.

Each entry point is jitted, so that a model's layers share one lowering, and Mosaic compiles one kernel for all of them
(3 layers: 1.9 s instead of 5.0).

`plgpu.kernel` takes no cost estimate, and XLA's cost analysis has none for GPUs: what a call costs is the cost model's
to say (`nanoserve.roofline`).

Contract: `api`. Next: `gpu_decode` and `gpu_prefill` (the kernels), `gpu_pipeline` (what they share), `gpu_work` (who
meets what), `gpu_tuning` (block sizes).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from kernels.pallas.paged_attention import gpu_decode, gpu_prefill, gpu_tuning, gpu_work, xla
from kernels.pallas.paged_attention.gpu_pipeline import HIDDEN, ROWS, Static
from kernels.pallas.paged_attention.gpu_tuning import Blocks
from kernels.pallas.paged_attention.gpu_work import WorkList

DTYPES = ("bfloat16", "float16")
QUANTISED_DTYPES = ("int8", "float8_e4m3fn")
HEAD_SIZES = (64, 96, 128, 256)
FUSED_SPLITS = gpu_tuning.USUAL_SPLITS
TILE_ROWS = 8  # what the TMA moves at least, of queries and of a page

STATIC = ("scale", "window", "soft_cap", "blocks", "interpret")


@functools.partial(jax.jit, static_argnames=STATIC)
def decode_attention(
    q_BHh: Float[Array, "B H h"],
    kv_pages: Float[Array, "P p K 2 h"],
    page_table_BN: Int32[Array, "B N"],
    kv_lens_B: Int32[Array, " B"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: Float[Array, "P p K 2"] | None = None,
    first_page: Int32[Array, ""] | int = 0,
    work: tuple[WorkList, jax.Array] | None = None,
    blocks: Blocks | None = None,
    interpret=None,
) -> Float[Array, "B H h"]:
    """See `api.decode_attention`.

    The G queries of a KV head are padded to a multiple of 8 in memory and to 64 in the matrix units.

    Args:
      q_BHh, kv_pages, page_table_BN, kv_lens_B, scale, window, soft_cap, kv_scales, first_page, work: see there.
      blocks: sizes to use instead of the tuned ones.
      interpret: what `plgpu.kernel` takes; `compat.gpu_interpreter()` to run on a CPU.
    """
    B, H, h = q_BHh.shape
    blocks = blocks or gpu_tuning.decode_blocks(kv_pages, B, page_table_BN.shape[1])
    static = _static(blocks, q_BHh, kv_pages, interpret, scale, window, soft_cap)
    pool = (kv_pages,) if kv_scales is None else (kv_pages, kv_scales)
    q_BKGh = q_BHh.reshape(B, kv_pages.shape[2], -1, h)
    G = q_BKGh.shape[2]
    q_BKGh = jnp.pad(q_BKGh, ((0, 0), (0, 0), (0, -G % TILE_ROWS), (0, 0)))
    items, used_BS = work or decode_work(q_BHh, kv_pages, page_table_BN, kv_lens_B, window=window, blocks=blocks)
    rows = page_table_BN, _first_page(first_page), items
    out_BSKGh, lse_BSKG = gpu_decode.call(q_BKGh, pool, *rows, blocks.splits, blocks.thread_blocks, static, interpret)
    out_BKGh = _combine(out_BSKGh[..., :G, :], lse_BSKG[..., :G], used_BS)
    return out_BKGh.reshape(B, H, h).astype(q_BHh.dtype)


@functools.partial(jax.jit, static_argnames=STATIC)
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
    kv_scales: Float[Array, "P p K 2"] | None = None,
    first_page: Int32[Array, ""] | int = 0,
    work: WorkList | None = None,
    blocks: Blocks | None = None,
    interpret=None,
) -> Float[Array, "T H h"]:
    """See `api.prefill_attention`, and `decode_attention` here for `blocks` and `interpret`."""
    blocks = blocks or gpu_tuning.prefill_blocks(kv_pages)
    static = _static(blocks, q_THh, kv_pages, interpret, scale, window, soft_cap)
    pool = (kv_pages,) if kv_scales is None else (kv_pages, kv_scales)
    work = work or prefill_work(q_THh, kv_pages, page_table_RN, kv_lens_R, cu_q_lens)
    rows = page_table_RN, _first_page(first_page), work
    return gpu_prefill.call(q_THh, pool, *rows, blocks.thread_blocks, static, interpret)


def decode_work(q_BHh, kv_pages, page_table_BN, kv_lens_B, *, window: int | None = None, blocks: Blocks | None = None):
    """See `api.decode_work`: the work list, and which splits of each row are in it [B, S]."""
    blocks = blocks or gpu_tuning.decode_blocks(kv_pages, q_BHh.shape[0], page_table_BN.shape[1])
    cuts_BS = gpu_work.decode_cuts(kv_lens_B, splits=blocks.splits, block_tokens=blocks.block_tokens, window=window)
    return gpu_work.decode_work_list(cuts_BS), jnp.diff(cuts_BS, axis=1) > 0


def prefill_work(q_THh, kv_pages, page_table_RN, kv_lens_R, cu_q_lens, *, window: int | None = None) -> WorkList:
    """See `api.prefill_work`; windows are for the kernel to skip."""
    tile_tokens = gpu_prefill.tile_tokens(q_THh, kv_pages)
    return gpu_work.prefill_work_list(kv_lens_R, cu_q_lens, tokens=q_THh.shape[0], tile_tokens=tile_tokens)


def _combine(
    out_BSKGh: Float[Array, "B S K G h"], lse_BSKG: Float[Array, "B S K G"], used_BS: jax.Array
) -> Float[Array, "B K G h"]:
    """Joins the splits of every row; zeros for a row without any. Splits that are not used may hold anything."""
    used_BSKG = used_BS[:, :, None, None]
    lse_BSKG = jnp.where(used_BSKG, lse_BSKG, HIDDEN)
    largest_BKG = _over_splits(jnp.maximum, lse_BSKG)
    weights_BSKG = jnp.where(used_BSKG, jnp.exp2(lse_BSKG - largest_BKG[:, None]), 0.0)
    total_BKG = jnp.maximum(_over_splits(jnp.add, weights_BSKG), 1.0)  # the largest weight is 1, unless there is none
    out_BSKGh = jnp.where(used_BSKG[..., None], out_BSKGh, 0.0)
    return _over_splits(jnp.add, out_BSKGh * weights_BSKG[..., None]) / total_BKG[..., None]


def _over_splits(join: Any, x_BS: Float[Array, "B S ..."]) -> Float[Array, "B ..."]:
    """All splits joined by a function of two arrays, a `jnp.ufunc`.

    Of few splits one after the other, which XLA fuses with what is around it (16 splits: 2 kernels). A reduction over
    an axis in the middle is a kernel of its own (4 in all), and a layer has few besides.
    """
    splits = x_BS.shape[1]
    if splits > FUSED_SPLITS:
        return join.reduce(x_BS, axis=1)
    return functools.reduce(join, (x_BS[:, split] for split in range(splits)))


def _first_page(first_page) -> Int32[Array, " 1"]:
    """The first page as kernels read it."""
    return jnp.asarray(first_page, jnp.int32).reshape(1)


def _static(blocks: Blocks, q, kv_pages, interpret, scale, window, soft_cap) -> Static:
    """What a kernel is compiled for."""
    return Static(
        page_tokens=kv_pages.shape[1],
        head_size=kv_pages.shape[4],
        dtype=q.dtype,
        kv_dtype=kv_pages.dtype,
        block_tokens=blocks.block_tokens,
        stages=blocks.stages,
        converted=blocks.converted,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        interpreted=bool(interpret),
    )


def write_kv(kv_pages, kv_TK2h, pages_T, offsets_T, first_page, kv_scales=None, scales_TK2=None):
    """See `api.write_kv`: XLA's scatter, which works in place on GPUs.

    A lone token gets a second beside it that goes nowhere. Otherwise XLA turns the scatter into a slice that is read, a
    choice between it and the token, and an update: two kernels, one after the other, where a scatter is one.
    """
    tokens = kv_TK2h, pages_T, offsets_T, scales_TK2
    if len(pages_T) == 1:
        tokens = jax.tree.map(lambda x: jnp.pad(x, ((0, 1), *[(0, 0)] * (x.ndim - 1))), tokens)
        tokens = tokens[0], tokens[1].at[1].set(len(kv_pages)), *tokens[2:]
    kv_TK2h, pages_T, offsets_T, scales_TK2 = tokens
    return xla.write_kv(kv_pages, kv_TK2h, pages_T, offsets_T, first_page, kv_scales, scales_TK2)


def prefill_tiles(q_THh, kv_pages, table_pages: int) -> tuple[int, bool]:
    """Queries that share what a prefill call fetches, and whether tiles go across chunks: for `ledger`."""
    return gpu_prefill.tile_tokens(q_THh, kv_pages), False


def why_not(q, kv_pages, page_table, kv_scales=None) -> str | None:
    """What of a call Mosaic GPU or these kernels cannot do, or None where they serve it."""
    _, page_tokens, K, _, h = kv_pages.shape
    if str(q.dtype) not in DTYPES or str(kv_pages.dtype) not in (str(q.dtype), *QUANTISED_DTYPES):
        return (
            f"the GPU kernels take queries of {' or '.join(DTYPES)} with pages of the same dtype or of "
            f"{' or '.join(QUANTISED_DTYPES)}, not {q.dtype} and {kv_pages.dtype}"
        )
    if (kv_scales is None) != (kv_pages.dtype == q.dtype):
        return f"the GPU kernels take scales with pages of 8 bits and with no others; these are of {kv_pages.dtype}"
    if h not in HEAD_SIZES:
        return f"the GPU kernels have head sizes {HEAD_SIZES}, not {h}"
    if q.shape[1] // K > ROWS:
        return f"the GPU kernels share a KV head among {ROWS} queries, not {q.shape[1] // K}"
    if page_tokens < TILE_ROWS or page_tokens & (page_tokens - 1):
        return f"the GPU kernels take pages of 8, 16, 32, 64, ... tokens, not {page_tokens}"
    return None


def pool_order(dtype) -> None:
    """The kernels read the pool in the order that XLA gives an argument anyway; see `api.pool_order`."""
