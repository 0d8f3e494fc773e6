"""Pages of 8 bits on Hopper: the warpgroup that makes 16-bit operands of them, between fetching and attending.

wgmma multiplies 16-bit queries by 16-bit keys in shared memory only, so that 8-bit blocks go through registers once:
from the ring that the TMA fills to a second `Ring` of operands. Both consumers of a prefill tile then read one result,
and the tensor cores do not wait for the conversion of the next block.

Numbers are converted exactly: int8 and float8_e4m3fn both fit in bfloat16 and in float16. Their scales stay float32, as
a factor on each score (a column of Q K^T) and on each weight before it is rounded. A position that nobody may look at
has a factor of 0 on its weight, whatever its scale; what a score is there does not matter, because it is hidden.

Scales are read from global memory without the TMA, which moves 16 bytes at least where a position of one head has 8,
and one block ahead, which hides their latency. Next: `gpu_decode`, `gpu_prefill`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.pallas.paged_attention import gpu_pipeline as pipeline
from kernels.pallas.paged_attention.gpu_pipeline import ROWS, PageRow, Ref, Ring, Static

# Scales of a box of 8, 16, ... positions: every 4 lanes, and every warp, hold the same.
LAYOUT = plgpu.Layout.TILED(
    plgpu.Tiling(((8,), (1,))),
    warp_dims=(plgpu.Replicated(4),),
    lane_dims=(-2, plgpu.Replicated(4)),
    vector_dim=-1,
)


class Scales(NamedTuple):
    """Scales of the keys and of the values of a block, [box_tokens] for each of its boxes."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def ring_scratch(static: Static, consumers: int) -> Ring:
    """What to allocate for the `Ring` of converted blocks."""
    ring = pipeline.new_ring(static, static.dtype, slots=static.converted, arrivals=1, consumers=consumers)
    factors = plgpu.SMEM((static.converted, static.block_tokens), jnp.float32)
    return ring._replace(k_factors=factors, v_factors=factors)


def convert_blocks(
    scales_ref: Ref, pages: PageRow, head, begin, end, fetched, fetching: Ring, ring: Ring, static: Static
):
    """Converts the blocks of positions `[begin, end)` of one KV head, in order.

    Args:
      scales_ref: [P, p, K, 2].
      pages, head, begin, end, fetched: as in `gpu_pipeline.fetch_blocks`, whose blocks these are.
      fetching: where they come from, opened by the caller.
      ring: where they go.
      static: see there.

    Returns:
      Blocks that have gone through both rings now.
    """
    first, last = static.span(begin, end)
    key_factors: Ref = ring.k_factors
    weight_factors: Ref = ring.v_factors

    def scales(index) -> Scales:
        return _load_scales(scales_ref, pages, head, (begin, end), jnp.clip(index, first, last - 1), static)

    def block(index, carry):
        fetched, (keys, values) = carry
        source, slot = lax.rem(fetched, static.stages), lax.rem(fetched, static.slots)
        coming = scales(index + 1)

        plgpu.barrier_wait(fetching.k_full.at[source])
        plgpu.barrier_wait(ring.k_free.at[slot])
        _convert(fetching.k.at[source], ring.k.at[slot], static)
        _write(key_factors.at[slot], keys, lambda scale, _: scale * static.score_factor, static)
        plgpu.commit_smem()
        plgpu.barrier_arrive(fetching.k_free.at[source])
        plgpu.barrier_arrive(ring.k_full.at[slot])

        def seen(scale, offset):
            position = plgpu.broadcasted_iota(jnp.int32, scale.shape, 0, layout=LAYOUT)
            position += index * static.block_tokens + offset
            return jnp.where((position >= begin) & (position < end), scale, 0.0)

        plgpu.barrier_wait(fetching.v_full.at[source])
        plgpu.barrier_wait(ring.v_free.at[slot])
        _convert(fetching.v.at[source], ring.v.at[slot], static)
        _write(weight_factors.at[slot], values, seen, static)
        plgpu.commit_smem()
        plgpu.barrier_arrive(fetching.v_free.at[source])

        @pl.when(static.edge(index, begin, end))
        def _():
            pipeline.zero_outside(ring.v.at[slot], index, begin, end, static)

        plgpu.barrier_arrive(ring.v_full.at[slot])
        return fetched + 1, coming

    return lax.fori_loop(first, last, block, (fetched, scales(first)))[0]


def _load_scales(scales_ref: Ref, pages: PageRow, head, seen, index, static: Static) -> Scales:
    """Scales of block `index`; those of positions that hold no part of `seen` are of some page or other."""
    begin, end = seen

    def box(position, which):
        page = pages.page(position, begin, end, static)
        page = jnp.clip(page, 0, scales_ref.shape[0] - 1)  # of a row that sees nothing; the TMA would not mind it
        offset = pl.multiple_of(lax.rem(position, static.page_tokens), static.box_tokens)
        source = scales_ref.at[page, pl.ds(offset, static.box_tokens), head, which]
        return plgpu.load(source, layout=LAYOUT, optimized=False)

    start = index * static.block_tokens
    positions = [start + offset for offset in range(0, static.block_tokens, static.box_tokens)]
    keys, values = (tuple(box(position, which) for position in positions) for which in (0, 1))
    return Scales(keys, values)


def _convert(source_s: Ref, target_s: Ref, static: Static) -> None:
    """A block of 8-bit numbers to one of `static.dtype`."""
    layout, columns = plgpu.Layout.WGMMA_UPCAST_2X, pipeline.tile_columns(static.head_size, static.kv_dtype)
    for row in range(0, static.block_tokens, ROWS):
        for column in range(0, static.head_size, columns):
            part = pl.ds(row, ROWS), pl.ds(column, columns)
            numbers = plgpu.load(source_s.at[part], layout=layout)
            if jnp.issubdtype(static.kv_dtype, jnp.floating):
                numbers = numbers.astype(jnp.float32)  # what Hopper makes bfloat16 of; float8 becomes float16 only
            target_s.at[part][...] = numbers.astype(static.dtype)


def _write(factors_s: Ref, scales: tuple[jax.Array, ...], factor: Callable[..., jax.Array], static: Static) -> None:
    """`factor(scale, offset)` of every box to its place."""
    for number, scale in enumerate(scales):
        offset = number * static.box_tokens
        factors_s.at[pl.ds(offset, static.box_tokens)][...] = factor(scale, offset)
