"""Block sizes of the GPU kernel, from the shared memory and the multiprocessors of an H100.

Nothing here has been timed. Sizes change the order of float32 sums, never what is summed.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kernels.pallas.quant_matmul.gpu_kernel import BLOCK_INPUTS, ROWS, groups_per_block, staged_tokens
from kernels.pallas.quant_matmul.weight import BITS, QuantWeight

SHARED_BYTES = 227 * 1024  # of a thread block on Hopper
RESERVED_BYTES = 4 * 1024  # barriers, and the alignment of each array
MULTIPROCESSORS = 132  # of an H100 SXM
MOST_TOKENS = 128  # of a tile: two sets of 64 sums a thread
MOST_STAGES = 6
MOST_SPLITS = 8
BLOCKS_PER_SPLIT = 4  # at least: shorter ones end before their pipeline is full


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Sizes of one call.

    Attributes:
      tile_tokens: rows of x of a tile: a multiple of 8 up to 64, or 128.
      stages: blocks of 128 inputs in shared memory.
      splits: parts that D is cut into.
      consumers: warpgroups of 64 output channels that share a tile of x, 1 or 2.
    """

    tile_tokens: int
    stages: int
    splits: int = 1
    consumers: int = 2


def blocks(x_TD: jax.Array | jax.ShapeDtypeStruct, weight: QuantWeight, consumers: int | None = None) -> Blocks:
    """Sizes for a product, if need be with a given number of consumers."""
    (T, D), F = x_TD.shape, weight.outputs
    consumers = consumers or (1 if F % (2 * ROWS) else 2)
    tokens = -(-T // 8) * 8 if T <= 64 else MOST_TOKENS
    tiles = -(-T // tokens) * (F // (consumers * ROWS))
    stages = min(MOST_STAGES, _free_bytes(tokens, consumers) // _stage_bytes(x_TD, weight, tokens, consumers))
    sums_per_weight = 2 * T * 4 / (D * BITS[weight.kind] / 8)  # bytes written and read for a split, to those of weights
    splits = _splits(tiles, D // BLOCK_INPUTS, sums_per_weight)
    return Blocks(tile_tokens=tokens, stages=stages, splits=splits, consumers=consumers)


def _splits(tiles: int, blocks_of_inputs: int, price: float) -> int:
    """Cuts of D that end soonest, if memory is what counts and a multiprocessor has its share of it.

    Args:
      tiles: of the result.
      blocks_of_inputs: of 128, in D.
      price: of a split, in the time that reading the weight takes.
    """

    def duration(splits: int) -> float:
        waves = -(-tiles * splits // MULTIPROCESSORS)
        return waves * MULTIPROCESSORS / (tiles * splits) + (price * splits if splits > 1 else 0)

    most = max(1, min(MOST_SPLITS, blocks_of_inputs // BLOCKS_PER_SPLIT))
    return min(range(1, most + 1), key=duration)


def _stage_bytes(x_TD, weight: QuantWeight, tokens: int, consumers: int) -> int:
    """Shared memory of a block of inputs: of x, of the weight, and its scales in whole KiB."""
    outputs = consumers * ROWS
    x_bytes = tokens * BLOCK_INPUTS * jnp.dtype(x_TD.dtype).itemsize
    scales_bytes = groups_per_block(weight) * outputs * jnp.dtype(weight.scales.dtype).itemsize
    return x_bytes + outputs * BLOCK_INPUTS * BITS[weight.kind] // 8 + -(-scales_bytes // 1024) * 1024


def _free_bytes(tokens: int, consumers: int) -> int:
    """Shared memory beside results on their way out."""
    return SHARED_BYTES - RESERVED_BYTES - consumers * ROWS * staged_tokens(tokens) * 4
