"""Writing new keys and values to their pages on TPU: one copy a token, from HBM to HBM, in the order of the pool.

XLA's scatter would do, but insists on an order in memory of its own wherever a page has more than one head, and copies
the whole pool into it and back in every layer (Llama-3.1-8B, pages of 16, on a v5p: 1.5 s a step by its estimate).

Invariants: copies are waited for in the order in which they were started; no two tokens of a call share a place, which
is what a plan promises. Next: `tpu_write8` for 8-bit pages, `tpu_kernel`, which reads what is written here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, ArrayLike, Int32, Num

IN_FLIGHT = 16  # copies: enough to hide a copy's latency, few enough for any queue


def write(
    kv_pages: Num[Array, "P p K 2 h"],
    kv_TK2h: Num[Array, "T K 2 h"],
    pages_T: Int32[Array, " T"],
    offsets_T: Int32[Array, " T"],
    first_page: ArrayLike,
    *,
    interpret: Any = False,
) -> Num[Array, "P p K 2 h"]:
    """See `api.write_kv`; pages of 2 or 4-byte elements, a token of which is whole words.

    Args:
      kv_pages, kv_TK2h, pages_T, offsets_T, first_page: see there.
      interpret: what `pallas_call` takes; `compat.tpu_interpreter()` to run on a CPU.
    """
    return pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct(kv_pages.shape, kv_pages.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(1,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 2,
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=[pltpu.SemaphoreType.DMA((IN_FLIGHT,))],
        ),
        input_output_aliases={3: 0},
        cost_estimate=pl.CostEstimate(
            flops=0, transcendentals=0, bytes_accessed=2 * kv_TK2h.size * kv_TK2h.dtype.itemsize
        ),
        interpret=interpret,
        name="write_kv",
    )(within(pages_T + first_page, kv_pages.shape[0]), offsets_T, kv_TK2h, kv_pages)


def within(pages_T: Int32[Array, " T"], pages: int) -> Int32[Array, " T"]:
    """Pages of the pool, with -1 for those that it does not have."""
    return jnp.where((pages_T >= 0) & (pages_T < pages), pages_T, -1)


def _kernel(
    pages,  # [T] in SMEM; negative: written nowhere
    offsets,  # [T] in SMEM
    kv,  # [T, K, 2, h] in HBM
    _,  # the pool, which `out` is
    out,  # [P, p, K, 2, h] in HBM
    arrived,  # [IN_FLIGHT] DMA semaphores
):
    """Starts a copy for every token, never more than IN_FLIGHT ahead of the oldest that is not waited for."""
    tokens = kv.shape[0]

    def each(token, act):
        @pl.when(pages[token] >= 0)
        def _():
            place = out.at[pages[token], offsets[token]]
            act(pltpu.make_async_copy(kv.at[token], place, arrived.at[jax.lax.rem(token, IN_FLIGHT)]))

    @pl.loop(0, tokens)
    def _(token):
        @pl.when(token >= IN_FLIGHT)
        def _():
            each(token - IN_FLIGHT, lambda copy: copy.wait())

        each(token, lambda copy: copy.start())

    @pl.loop(max(0, tokens - IN_FLIGHT), tokens)
    def _(token):
        each(token, lambda copy: copy.wait())
