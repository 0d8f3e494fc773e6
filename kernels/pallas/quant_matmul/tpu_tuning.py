"""Block sizes of the TPU kernel: arithmetic on the 16 MiB of VMEM that a kernel gets unless it asks for more.

Nothing here has been timed. Sizes change the order of float32 sums, never what is summed.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kernels.pallas import compat
from kernels.pallas.quant_matmul.weight import BITS, QuantWeight

LANES = 128
ROWS_BYTES = 8 * 2**20  # rows of x: all of them once, or two tiles
TILE_BYTES = 2 * 2**20  # a tile of the weight, held twice: 2.5 us of a v5e's memory, beside 0.35 us for a grid step
MOST_TOKENS = 512
MOST_OUTPUTS = 1024
STEPS = 8  # at least, so that the first copy, which nothing hides, is a small part
CHUNK = 512  # inputs multiplied at a time where one scale serves them all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Sizes of one call.

    Attributes:
      tile_tokens: rows of x in VMEM.
      tile_outputs: output channels of a grid step.
      chunk: inputs converted and multiplied at a time.
      cores: cores that share the call, each with output channels of its own.
    """

    tile_tokens: int
    tile_outputs: int
    chunk: int
    cores: int = 1


def blocks(x_TD: jax.Array | jax.ShapeDtypeStruct, weight: QuantWeight) -> Blocks:
    """Sizes for a product."""
    row_bytes = weight.inputs * BITS[weight.kind] / 8
    parts = LANES // min(weight.group, LANES)  # small groups in a chunk have products of their own, as wide as a tile
    most = min(int(TILE_BYTES / row_bytes), MOST_OUTPUTS // parts, weight.outputs // STEPS)
    outputs = max(1, most // LANES) * LANES
    cores = min(compat.tpu_cores(), -(-weight.outputs // outputs))
    return Blocks(tile_tokens=_tile_tokens(x_TD), tile_outputs=outputs, chunk=_chunk(weight), cores=cores)


def _tile_tokens(x_TD: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Rows of a tile: all of them if they fit, else as many as two tiles may have, in whole lanes where possible."""
    T, D = x_TD.shape
    row_bytes = D * jnp.dtype(x_TD.dtype).itemsize
    sublanes = 8 * 4 // jnp.dtype(x_TD.dtype).itemsize
    whole = -(-T // sublanes) * sublanes
    if whole <= min(MOST_TOKENS, ROWS_BYTES // row_bytes):
        return whole
    most = min(MOST_TOKENS, ROWS_BYTES // (2 * row_bytes))
    return most // LANES * LANES or max(1, most // sublanes) * sublanes


def _chunk(weight: QuantWeight) -> int:
    """Inputs multiplied at a time: one group of 128 or more, several smaller ones, or part of a whole column."""
    if weight.groups > 1:
        return max(weight.group, LANES)
    return next(chunk for chunk in (CHUNK, CHUNK // 2, LANES) if weight.inputs % chunk == 0)
