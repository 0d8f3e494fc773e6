"""Attention over a paged KV pool: the contract, its checks, and the choice of an implementation.

The pool of a layer is `kv[P, p, K, 2, h]`: P pages of p tokens, K heads, key and value, head size h. A sequence's
position s is at page `page_table[row, s // p]`, offset `s % p`. Pages of 8 bits come with `kv_scales[P, p, K, 2]`, one
factor for each key and each value. Every implementation keeps four promises:

1. Only positions below a row's length (and inside its window) are used. Whatever lies elsewhere in the pool, NaN
   included, never reaches a result, and page-table entries past the length may be any integer.
2. Renaming pages, or changing the other rows of a batch, does not change a row's result.
3. A row of length 0, and a token past the last chunk, gives zeros.
4. Scores and sums are float32; only the result is rounded to the query's dtype.

`choose` picks an implementation for a model's shapes, and everything else here takes the name that it returned. Layers
may share one array, a layer's pages being those from `first_page` on; and they share what depends on lengths alone,
which `decode_work` and `prefill_work` make once a step.

Next: `reference` (NumPy, plain loops), `xla` (any chip), `tpu` and `gpu` (Mosaic), `arg_specs` (the shapes that
tests and benchmarks share).
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Num

from kernels.pallas import choosing
from kernels.pallas.choosing import Choice
from kernels.pallas.paged_attention import gpu, gpu_interpret, tpu, tpu_interpret, xla

IMPLEMENTATIONS: Mapping[str, ModuleType] = {
    "xla": xla,
    "pallas_tpu": tpu,
    "pallas_tpu_interpret": tpu_interpret,
    "pallas_gpu": gpu,
    "pallas_gpu_interpret": gpu_interpret,
}
OPERATION = "paged attention"

Work = Any  # a pytree of integer arrays, known to the implementation that made it alone
Shaped = Any  # an array, or a `jax.ShapeDtypeStruct`: only shape and dtype are looked at


def check_known(implementation: str) -> None:
    """Raises ConfigError for a name that is neither `auto` nor in `IMPLEMENTATIONS`."""
    choosing.check_known(OPERATION, implementation, IMPLEMENTATIONS)


def choose(
    implementation: str,
    target: str,
    q: Shaped,
    kv_pages: Shaped,
    page_table: Shaped,
    kv_scales: Shaped | None = None,
) -> Choice:
    """The implementation that a name stands for: `auto` is the kernel for the target if it serves these shapes.

    Args:
      implementation: a name in `IMPLEMENTATIONS`, which is never replaced by another, or `auto`.
      target: what will run it, as `compat.kernel_target` says.
      q, kv_pages, page_table, kv_scales: shapes of a call on one chip.

    Raises:
      ConfigError: for a name that does not exist, and for a name that cannot serve these shapes.
    """
    return choosing.choose(
        OPERATION,
        implementation,
        target,
        IMPLEMENTATIONS,
        lambda module: module.why_not(q, kv_pages, page_table, kv_scales),
    )


def pool_order(implementation: str, dtype) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How an implementation wants the pool to lie in memory; a pool that lies otherwise is copied at every call.

    Returns:
      The axes of `kv_pages` and of `kv_scales` from the outermost to the innermost, or None where any order will do.
    """
    return _module(implementation).pool_order(jnp.dtype(dtype))


@jax.named_scope("decode_work")
def decode_work(
    q_BHh: Shaped,
    kv_pages: Shaped,
    page_table_BN: Int32[Array, "B N"],
    kv_lens_B: Int32[Array, " B"],
    *,
    window: int | None = None,
    implementation: str,
) -> Work:
    """What `decode_attention` derives from lengths and shapes, for all layers that share them.

    Args:
      q_BHh, kv_pages: shapes of the call; pages are those of one layer.
      page_table_BN, kv_lens_B, window, implementation: as for `decode_attention`.
    """
    return _module(implementation).decode_work(q_BHh, kv_pages, page_table_BN, kv_lens_B, window=window)


@jax.named_scope("prefill_work")
def prefill_work(
    q_THh: Shaped,
    kv_pages: Shaped,
    page_table_RN: Int32[Array, "R N"],
    kv_lens_R: Int32[Array, " R"],
    cu_q_lens: Int32[Array, " R+1"],
    *,
    window: int | None = None,
    implementation: str,
) -> Work:
    """What `prefill_attention` derives from lengths and shapes; see `decode_work`."""
    return _module(implementation).prefill_work(q_THh, kv_pages, page_table_RN, kv_lens_R, cu_q_lens, window=window)


@jax.named_scope("decode_attention")
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
    implementation: str,
) -> Float[Array, "B H h"]:
    """One query per sequence, at its last position.

    Args:
      q_BHh: queries; head H = K G, in K groups of G.
      kv_pages: the layer's pool, or that of many layers.
      page_table_BN: pages of each sequence, in order.
      kv_lens_B: positions written, the query's own included; 0 for a padding row.
      scale: factor on the scores, usually `h**-0.5`.
      window: positions a query sees, its own included; None for all.
      soft_cap: scores become `cap * tanh(score / cap)`; None for no cap.
      kv_scales: float32 factor of each key and each value of int8 or float8 pages; None where pages hold the numbers.
      first_page: added to every entry of the page table.
      work: what `decode_work` made of the same rows, window and implementation; None makes it here.
      implementation: the name that `choose` returned for these shapes: what it cannot serve is found there, once.

    Returns:
      The attended values, in the query's dtype.

    Raises:
      ConfigError: for an implementation that does not exist.
      ValueError: for shapes that do not fit together.
    """
    _check(q_BHh, kv_pages, page_table_BN, kv_lens_B, window, kv_scales)
    if q_BHh.shape[0] != kv_lens_B.shape[0]:
        raise ValueError(f"{q_BHh.shape[0]} queries for {kv_lens_B.shape[0]} sequences")
    options = _options(scale, window, soft_cap, kv_scales, first_page, work)
    return _module(implementation).decode_attention(q_BHh, kv_pages, page_table_BN, kv_lens_B, **options)


@jax.named_scope("prefill_attention")
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
    implementation: str,
) -> Float[Array, "T H h"]:
    """Causal attention of prompt chunks laid end to end, over the KV that they and earlier chunks wrote.

    Args:
      q_THh: queries; those of row r are `q_THh[cu_q_lens[r]:cu_q_lens[r + 1]]`, the last at position
        `kv_lens_R[r] - 1`. Tokens from `cu_q_lens[-1]` on are padding.
      kv_pages: the layer's pool, or that of many layers.
      page_table_RN: pages of each sequence, in order.
      kv_lens_R: positions written, the chunk's own included.
      cu_q_lens: chunk boundaries, starting at 0; an empty chunk is a padding row.
      scale, window, soft_cap, kv_scales, first_page, work, implementation: as for `decode_attention`.

    Returns:
      The attended values, in the query's dtype.

    Raises:
      ConfigError: for an implementation that does not exist.
      ValueError: for shapes that do not fit together.
    """
    _check(q_THh, kv_pages, page_table_RN, kv_lens_R, window, kv_scales)
    if cu_q_lens.shape != (kv_lens_R.shape[0] + 1,):
        raise ValueError(f"{kv_lens_R.shape[0]} sequences need {kv_lens_R.shape[0] + 1} boundaries: {cu_q_lens.shape}")
    options = _options(scale, window, soft_cap, kv_scales, first_page, work)
    return _module(implementation).prefill_attention(q_THh, kv_pages, page_table_RN, kv_lens_R, cu_q_lens, **options)


@jax.named_scope("write_kv")
def write_kv(
    kv_pages: Num[Array, "P p K 2 h"],
    kv_TK2h: Num[Array, "T K 2 h"],
    pages_T: Int32[Array, " T"],
    offsets_T: Int32[Array, " T"],
    *,
    kv_scales: Float[Array, "P p K 2"] | None = None,
    scales_TK2: Float[Array, "T K 2"] | None = None,
    first_page: Int32[Array, ""] | int = 0,
    implementation: str,
) -> tuple[Num[Array, "P p K 2 h"], Float[Array, "P p K 2"] | None]:
    """Puts each token's key and value at its page and offset; in place when the pool is donated.

    Args:
      kv_pages: the layer's pool, or that of many layers.
      kv_TK2h: keys and values, of the dtype of the pages.
      pages_T, offsets_T: where each token goes. The tokens of one page come one after the other, at offsets that follow
        each other. A page that, with `first_page` added, is not in the pool takes nothing; it must not be negative.
      kv_scales, scales_TK2: factors of the pages' 8-bit elements, and those of the tokens; None where pages hold the
        numbers.
      first_page, implementation: as for `decode_attention`.

    Returns:
      The pages with the tokens in them and their scales, in the order in memory that the implementation reads.

    Raises:
      ConfigError: for an implementation that does not exist.
      ValueError: for scales of the pool without scales of the tokens, or the other way round.
    """
    if (kv_scales is None) != (scales_TK2 is None):
        raise ValueError("a pool with scales takes tokens with scales, and a pool without them takes none")
    return _module(implementation).write_kv(kv_pages, kv_TK2h, pages_T, offsets_T, first_page, kv_scales, scales_TK2)


def _module(implementation: str) -> ModuleType:
    return choosing.module_of(OPERATION, implementation, IMPLEMENTATIONS)


def _options(scale, window, soft_cap, kv_scales, first_page, work) -> dict[str, Any]:
    """Keyword arguments of an implementation; a kernel never sees an operand that is not there."""
    options = {"scale": scale, "window": window, "soft_cap": soft_cap, "first_page": first_page, "work": work}
    return options if kv_scales is None else options | {"kv_scales": kv_scales}


def _check(q, kv_pages, page_table, kv_lens, window, kv_scales) -> None:
    """Everything that shapes can tell, so that a mistake is reported by name and not by a gather far below."""
    if kv_pages.ndim != 5 or kv_pages.shape[3] != 2:
        raise ValueError(f"kv_pages is [P, p, K, 2, h], got {kv_pages.shape}")
    if q.ndim != 3 or q.shape[2] != kv_pages.shape[4] or q.shape[1] % kv_pages.shape[2]:
        raise ValueError(f"queries {q.shape} do not fit pages {kv_pages.shape}: [., H, h] with H a multiple of K")
    if page_table.ndim != 2 or page_table.shape[:1] != kv_lens.shape:
        raise ValueError(f"a page table {page_table.shape} needs one length per row, got {kv_lens.shape}")
    for name, array in {"page table": page_table, "lengths": kv_lens}.items():
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"the {name} must be integers, got {array.dtype}")
    if kv_scales is not None and kv_scales.shape != kv_pages.shape[:4]:
        raise ValueError(f"kv_scales is [P, p, K, 2] of pages {kv_pages.shape}, got {kv_scales.shape}")
    if window is not None and window < 1:
        raise ValueError(f"a window of {window} positions leaves a query nothing to attend to")
