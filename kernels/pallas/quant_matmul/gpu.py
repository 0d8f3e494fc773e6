"""Products with quantised weights on Hopper GPUs, in Mosaic GPU: what the kernel serves, and what XLA does after it.

Where output tiles alone would leave multiprocessors idle, D is cut into splits, each of which leaves float32 sums that
XLA adds and rounds.

Jitted, so that layers of one shape share a lowering and a kernel. `plgpu.kernel` takes no cost estimate, and XLA's cost
analysis has none for GPUs: what a call costs is the cost model's to say (`nanoserve.roofline`).

Contract: `api`. Next: `gpu_kernel`, `gpu_tuning` (block sizes).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int32, Num

from kernels.pallas.quant_matmul import gpu_kernel, gpu_tuning
from kernels.pallas.quant_matmul.gpu_kernel import BLOCK_INPUTS, ROWS
from kernels.pallas.quant_matmul.gpu_tuning import Blocks
from kernels.pallas.quant_matmul.schemes import GROUPS
from kernels.pallas.quant_matmul.weight import QuantWeight, stacked

FLOAT_ROWS = ("bfloat16", "float16")
SAME_ROWS = ("int8", "float8_e4m3fn")  # multiplied by weights of the same dtype
TILE_ROWS = 8  # the TMA moves arrays of fewer rows, or of a multiple of them


def why_not(x_TD: jax.Array | jax.ShapeDtypeStruct, weight: QuantWeight) -> str | None:
    """Why the kernel does not serve these arguments, with what does; None where it does."""
    dtype = jnp.dtype(x_TD.dtype).name
    if dtype not in (*FLOAT_ROWS, *SAME_ROWS):
        return f"the GPU kernel multiplies rows of {' or '.join(FLOAT_ROWS)}, or 8-bit ones, not {dtype}"
    if dtype in SAME_ROWS and weight.kind != dtype:
        return (
            f"the GPU kernel multiplies {dtype} rows by {dtype} weights, not {weight.kind}: use quant_matmul, or 'xla'"
        )
    if weight.inputs % BLOCK_INPUTS or weight.outputs % ROWS:
        return (
            f"the GPU kernel takes a multiple of {BLOCK_INPUTS} inputs and of {ROWS} outputs, not "
            f"{weight.inputs} and {weight.outputs}: pad the matrix"
        )
    if weight.groups > 1 and weight.group not in GROUPS:
        return f"the GPU kernel takes groups of {', '.join(map(str, GROUPS))}, not {weight.group}"
    if weight.groups > 1 and dtype in SAME_ROWS and weight.group < BLOCK_INPUTS:
        return f"the GPU kernel multiplies {dtype} rows in groups of {BLOCK_INPUTS}, not {weight.group}"
    return None


@functools.partial(jax.jit, static_argnames=("out_dtype", "blocks", "interpret"))
def matmul(
    x_TD: Num[Array, "T D"],
    weight: QuantWeight,
    row_scales_T: Float[Array, " T"] | None = None,
    *,
    layer: Int32[Array, ""] | None = None,
    out_dtype: DTypeLike,
    blocks: Blocks | None = None,
    interpret=None,
) -> Float[Array, "T F"]:
    """The product in the contract's order.

    Args:
      x_TD: rows as they are multiplied: bf16 or f16, or int8 or fp8 with scales.
      weight: the weight.
      row_scales_T: float32 factor of each row.
      layer: which of a stack of weights, read where it lies; None for a single one.
      out_dtype: of the result.
      blocks: sizes to use instead of the tuned ones.
      interpret: what `plgpu.kernel` takes; `compat.gpu_interpreter()` to run on a CPU.
    """
    T = x_TD.shape[0]
    blocks = blocks or gpu_tuning.blocks(x_TD, weight)
    if T > TILE_ROWS:
        x_TD = jnp.pad(x_TD, ((0, -T % TILE_ROWS), (0, 0)))
    if row_scales_T is not None:  # read without the TMA, which alone knows where an array ends
        row_scales_T = jnp.pad(row_scales_T, (0, -T % blocks.tile_tokens))
    partial_dtype = jnp.float32 if blocks.splits > 1 else out_dtype
    sums_STF = gpu_kernel.call(x_TD, *stacked(weight, layer), row_scales_T, partial_dtype, blocks, interpret)[:, :T]
    return sums_STF[0] if blocks.splits == 1 else jnp.sum(sums_STF, axis=0).astype(out_dtype)
