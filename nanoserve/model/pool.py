"""The KV pool: pages of every layer, and what it takes to write a token's keys and values to them.

A pool of 8-bit pages holds quotients, and a factor for each key and each value, so that a token costs `h` bytes and
four instead of `2 h`: the largest element of a vector becomes the largest number that the type has.

The pool is one run of pages to the layers: page i of layer l is page `l P + i`. A layer is then only a first page, so
no compiler has a reason to copy a layer's pages out of the pool.

Next: `attention` (who reads it), `sharding` (how it lies on chips).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int32, Num

from kernels.pallas.paged_attention import api as paged_attention
from nanoserve.specs.models import ModelSpec

NOWHERE = 1 << 30  # a page beyond any pool, whatever layer's first page is added to it: not written


@struct.dataclass
class KvPool:
    """Pages of all layers, or of one, or of all layers in one run of `L P` pages.

    Attributes:
      pages: `[..., 0, :]` are keys after RoPE and `[..., 1, :]` values.
      scales: float32 factor of each key and value where `pages` are of 8 bits, else None.
    """

    pages: Num[Array, "*L P p K 2 h"]
    scales: Float[Array, "*L P p K 2"] | None = None


class Slots(NamedTuple):
    """Where tokens go: a page of one layer, and an offset in it. A page of `NOWHERE` takes nothing."""

    pages_T: Int32[Array, " T"]
    offsets_T: Int32[Array, " T"]


def needs_scales(dtype: DTypeLike) -> bool:
    """Whether pages of this type hold quotients."""
    return jnp.dtype(dtype).itemsize == 1


def empty_pool(spec: ModelSpec, *, pages: int, page_tokens: int, dtype: DTypeLike) -> KvPool:
    """A pool of zeros, with P = `pages` of p = `page_tokens` for each layer."""
    shape = (spec.layers, pages, page_tokens, spec.kv_heads, 2, spec.head_size)
    scales = jnp.zeros(shape[:-1], jnp.float32) if needs_scales(dtype) else None
    return KvPool(jnp.zeros(shape, dtype), scales)


def one_run(pool: KvPool) -> KvPool:
    """The pages of all layers, one layer after the other: `[L P, ...]`."""
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), pool)


def by_layer(pool: KvPool, like: KvPool) -> KvPool:
    """The inverse of `one_run`, with the shapes of `like`."""
    return jax.tree.map(lambda array, shaped: array.reshape(shaped.shape), pool, like)


def slots_of(
    pool: KvPool,
    page_table_RN: Int32[Array, "R N"],
    row_T: Int32[Array, " T"],
    positions_T: Int32[Array, " T"],
    real_T: Bool[Array, " T"],
) -> Slots:
    """The slot of each token: its row's page for its position, or `NOWHERE` where it must not be written.

    A position beyond the table is written nowhere rather than to the table's last page, and so is a page that the pool
    does not have: a wrong plan loses a token's KV instead of overwriting another token's.

    Args:
      pool: [L, P, p, ...]; only shapes are looked at.
      page_table_RN: pages of each row, in order.
      row_T, positions_T: row of each token, and its position in the row's sequence.
      real_T: False for padding tokens.
    """
    _, pages, page_tokens = pool.pages.shape[:3]
    page_T = page_table_RN.at[row_T, positions_T // page_tokens].get(mode="fill", fill_value=NOWHERE)
    exists_T = real_T & (page_T >= 0) & (page_T < pages)
    return Slots(jnp.where(exists_T, page_T, NOWHERE), positions_T % page_tokens)


def layer_shapes(pool: KvPool) -> KvPool:
    """Shapes of one layer's part of `[L, P, ...]`."""
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), pool)


def write(
    pool: KvPool,
    k_TKh: Float[Array, "T K h"],
    v_TKh: Float[Array, "T K h"],
    slots: Slots,
    first_page: Int32[Array, ""] | int = 0,
    implementation: str = "xla",
) -> KvPool:
    """Puts each token's key and value at its slot of the layer that begins at `first_page`.

    In place when the pool is donated. `implementation` is that of the attention which reads the pages.
    """
    kv_TK2h = jnp.stack([k_TKh, v_TKh], axis=2)
    options = {"first_page": first_page, "implementation": implementation}
    if pool.scales is None:
        return KvPool(*paged_attention.write_kv(pool.pages, kv_TK2h.astype(pool.pages.dtype), *slots, **options))
    quotients, scales_TK2 = quantised(kv_TK2h, pool.pages.dtype)
    scales = {"kv_scales": pool.scales, "scales_TK2": scales_TK2}
    return KvPool(*paged_attention.write_kv(pool.pages, quotients, *slots, **scales, **options))


def quantised(x: Float[Array, "... h"], dtype: DTypeLike) -> tuple[Num[Array, "... h"], Float[Array, "..."]]:
    """Quotients of a small type and their float32 factors, one for each vector, rounded to nearest."""
    dtype = jnp.dtype(dtype)
    whole = jnp.issubdtype(dtype, jnp.integer)
    largest = float(jnp.iinfo(dtype).max if whole else jnp.finfo(dtype).max)
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1) / largest
    quotients = x / jnp.where(scales > 0, scales, 1.0)[..., None]
    return (jnp.rint(quotients) if whole else quotients).astype(dtype), scales
