"""Paged attention in plain XLA: pages gathered a chunk at a time, softmax kept online, any chip.

Both entry points are one loop, `_attend`: queries of some rows walk the chunks of KV that any of them can see, so a
short context does not pay for a long page table. Decode takes all rows at once. Prefill takes one block of one chunk's
queries at a time, so that a short prompt beside a long one pays for itself only.

A chunk that a row cannot see changes nothing in it, bit for bit (its weights are exactly 0 and its rescaling exactly
1), which is what makes a row independent of its neighbours. Contract: `api`. Truth: `reference`.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32

from kernels.pallas.compat import row_major
from kernels.pallas.einsum import einsum_f32

CHUNK_TOKENS = 256  # KV positions gathered at a time: a few hundred kB per row stay in cache between the two products
QUERY_BLOCK = 128  # prefill queries that share a gathered chunk
HIDDEN = -1e30  # score of a position that a query cannot see; finite, because inf - inf is NaN


def decode_attention(
    q_BHh, kv_pages, page_table_BN, kv_lens_B, *, scale, window, soft_cap, kv_scales=None, first_page=0, work=None
):
    """See `api.decode_attention`."""
    del work  # lengths are used as they are
    B, H, h = q_BHh.shape
    page_table_BN = page_table_BN + first_page
    q_BQKGh = q_BHh.reshape(B, 1, kv_pages.shape[2], -1, h)
    positions_BQ = kv_lens_B[:, None] - 1
    options = {"scale": scale, "window": window, "soft_cap": soft_cap, "kv_scales": kv_scales}
    out = _attend(q_BQKGh, kv_pages, page_table_BN, positions_BQ, **options)
    return out.reshape(B, H, h)


def prefill_attention(
    q_THh,
    kv_pages,
    page_table_RN,
    kv_lens_R,
    cu_q_lens,
    *,
    scale,
    window,
    soft_cap,
    kv_scales=None,
    first_page=0,
    work=None,
):
    """See `api.prefill_attention`."""
    del work
    page_table_RN = page_table_RN + first_page
    T, H, h = q_THh.shape
    Q = min(QUERY_BLOCK, T)
    q_TKGh = jnp.pad(q_THh.reshape(T, kv_pages.shape[2], -1, h), ((0, Q), (0, 0), (0, 0), (0, 0)))
    blocks_R = -(-jnp.diff(cu_q_lens) // Q)
    blocks_end_R = jnp.cumsum(blocks_R)
    options = {"scale": scale, "window": window, "soft_cap": soft_cap, "kv_scales": kv_scales}

    def block(index, out_TKGh):
        row = jnp.searchsorted(blocks_end_R, index, side="right")
        start = cu_q_lens[row] + (index - (blocks_end_R[row] - blocks_R[row])) * Q
        left = cu_q_lens[row + 1] - start
        position_Q = jnp.where(jnp.arange(Q) < left, kv_lens_R[row] - left + jnp.arange(Q), -1)
        q_QKGh = lax.dynamic_slice_in_dim(q_TKGh, start, Q)
        table_1N = lax.dynamic_slice_in_dim(page_table_RN, row, 1)
        out = _attend(q_QKGh[None], kv_pages, table_1N, position_Q[None], **options)
        # The block's unused queries give zeros; the next block starts where they do and overwrites them.
        return lax.dynamic_update_slice_in_dim(out_TKGh, out[0], start, axis=0)

    out_TKGh = lax.fori_loop(0, blocks_end_R[-1], block, jnp.zeros_like(q_TKGh))
    return out_TKGh[:T].reshape(T, H, h)


def why_not(q, kv_pages, page_table, kv_scales=None) -> None:
    """Nothing: every shape is served. See `api.choose`."""


def pool_order(dtype) -> None:
    """Any order will do; see `api.pool_order`."""


def write_kv(kv_pages, kv_TK2h, pages_T, offsets_T, first_page, kv_scales=None, scales_TK2=None):
    """See `api.write_kv`; tokens may go anywhere, in any order."""
    places = pages_T + first_page, offsets_T
    kv_pages = kv_pages.at[places].set(kv_TK2h, mode="drop")
    return kv_pages, None if kv_scales is None else kv_scales.at[places].set(scales_TK2, mode="drop")


def decode_work(q_BHh, kv_pages, page_table_BN, kv_lens_B, *, window=None) -> tuple[()]:
    """Nothing; see `api.decode_work`."""
    return ()


def prefill_work(q_THh, kv_pages, page_table_RN, kv_lens_R, cu_q_lens, *, window=None) -> tuple[()]:
    """Nothing; see `api.prefill_work`."""
    return ()


def chunk_tokens(page_tokens: int, table_pages: int) -> int:
    """KV positions gathered at a time: whole pages, no more than a row of the page table holds."""
    return page_tokens * max(1, min(CHUNK_TOKENS // page_tokens, table_pages))


def decode_gathered_tokens(kv_lens: np.ndarray, page_tokens: int, table_pages: int, window: int | None = None) -> int:
    """KV positions that one decode call gathers, padding rows included: what a step executes rather than what it needs.

    Args:
      kv_lens: [B] as passed to `decode_attention`.
      page_tokens, table_pages: p, and N of the page table.
      window: as passed to `decode_attention`.
    """
    first, end = _span(np.asarray(kv_lens)[:, None] - 1, chunk_tokens(page_tokens, table_pages), window, np)
    return len(kv_lens) * max(0, int(end - first)) * chunk_tokens(page_tokens, table_pages)


def prefill_gathered_tokens(
    kv_lens: np.ndarray, q_lens: np.ndarray, tokens: int, page_tokens: int, table_pages: int, window: int | None = None
) -> int:
    """KV positions that one prefill call gathers, once for each block of queries.

    Args:
      kv_lens, q_lens: [R] positions written and queries of each row.
      tokens: T of the call, padding included.
      page_tokens, table_pages, window: as for `decode_gathered_tokens`.
    """
    chunk, block, total = chunk_tokens(page_tokens, table_pages), min(QUERY_BLOCK, tokens), 0
    for kv_len, q_len in zip(kv_lens, q_lens, strict=True):
        for start in range(0, int(q_len), block):
            left = int(q_len) - start
            positions = int(kv_len) - left + np.arange(min(block, left))
            first, end = _span(positions[None], chunk, window, np)
            total += int(end - first) * chunk
    return total


def _attend(
    q_BQKGh: Float[Array, "B Q K G h"],
    kv_pages: Float[Array, "P p K 2 h"],
    page_table_BN: Int32[Array, "B N"],
    positions_BQ: Int32[Array, "B Q"],
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    kv_scales: Float[Array, "P p K 2"] | None,
) -> Float[Array, "B Q K G h"]:
    """Attention of queries at `positions_BQ`; a query at position -1 sees nothing and gives zeros."""
    B, Q, K, G, h = q_BQKGh.shape
    chunk = chunk_tokens(kv_pages.shape[1], page_table_BN.shape[1])
    first_BQ = 0 * positions_BQ if window is None else positions_BQ - window + 1
    begin, end = _span(positions_BQ, chunk, window, jnp)

    def body(index, carry):
        largest, total, sums = carry  # of the scores so far [B, K, G, Q], and the weighted values [B, K, G, Q, h]
        s_S = index * chunk + jnp.arange(chunk)
        seen_BQS = (first_BQ[..., None] <= s_S) & (s_S <= positions_BQ[..., None])
        used_BS = jnp.any(seen_BQS, axis=1)
        k_BSKh, v_BSKh = _gather((kv_pages, kv_scales), page_table_BN, index, chunk, used_BS, q_BQKGh.dtype)
        scores = scale * einsum_f32("BQKGh,BSKh->BKGQS", q_BQKGh, k_BSKh)
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        seen = seen_BQS[:, None, None]
        larger = jnp.maximum(largest, jnp.max(scores, axis=-1, where=seen, initial=HIDDEN))
        weights = jnp.where(seen, jnp.exp(scores - larger[..., None]), 0.0)
        rescale = jnp.exp(largest - larger)
        total = total * rescale + jnp.sum(weights, axis=-1)
        # Weights are rounded to the query's dtype, as flash attention does; their sum above is not.
        values = einsum_f32("BKGQS,BSKh->BKGQh", weights.astype(q_BQKGh.dtype), v_BSKh)
        return larger, total, sums * rescale[..., None] + values

    shape = (B, K, G, Q)
    empty = (jnp.full(shape, HIDDEN), jnp.zeros(shape), jnp.zeros((*shape, h)))
    _, total, sums = lax.fori_loop(begin, end, body, empty)
    out = sums / jnp.where(total > 0, total, 1.0)[..., None]
    return jnp.einsum("BKGQh->BQKGh", out).astype(q_BQKGh.dtype)


def _span(positions_BQ, chunk: int, window: int | None, xp):
    """First chunk that any query sees, and the one after the last; equal where there is nothing to see."""
    end = xp.max(positions_BQ) // chunk + 1
    if window is None:
        return 0, end
    firsts_BQ = xp.maximum(positions_BQ - window + 1, 0) // chunk
    return xp.min(xp.where(positions_BQ >= 0, firsts_BQ, end)), end


def _gather(pool, page_table_BN, index, chunk: int, used_BS, dtype):
    """Keys and values of one chunk, [B, S, K, h] each, with zeros where no query looks.

    Zeros are needed for values as well as scores: a masked weight is 0, and 0 x NaN is NaN.
    """
    kv_pages, kv_scales = pool
    pages, page_tokens = kv_pages.shape[:2]
    wanted_n = index * (chunk // page_tokens) + jnp.arange(chunk // page_tokens)
    table_Bn = jnp.clip(page_table_BN.at[:, wanted_n].get(mode="clip"), 0, pages - 1)

    def chunk_of(array):
        # Without a fixed layout here the TPU compiler picks one that suits the products below, carries it back through
        # the gather, and copies the whole pool into it in every layer: 0.3 M cycles for 33 MB on a v5p.
        gathered = row_major(array.at[table_Bn].get(mode="promise_in_bounds"))
        return gathered.reshape(table_Bn.shape[0], chunk, *array.shape[2:])

    kv = chunk_of(kv_pages)
    if kv_scales is not None:
        kv = kv.astype(jnp.float32) * chunk_of(kv_scales)[..., None]
    kv = jnp.where(used_BS[:, :, None, None, None], kv, 0).astype(dtype)
    return kv[:, :, :, 0], kv[:, :, :, 1]
