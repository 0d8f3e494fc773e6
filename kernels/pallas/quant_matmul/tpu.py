"""Products with quantised weights on TPU: one Mosaic kernel that streams the weight and keeps a tile of rows of x.

A grid step takes `tile_outputs` output channels with all their D weights, a contiguous copy of 1 to 2 MiB; the next
one arrives meanwhile. Rows of x stay in VMEM for all of them. In the step, D is walked in chunks: weights are converted
to the dtype of x (or stay int8, where x is), multiplied as the transposed operand that the matrix unit takes, and
scaled as the contract says.

Groups of 32 and 64 share a chunk of 128 lanes. Their rows of x are stacked with all but one group's lanes zeroed, so
that the weights go through the matrix unit once, whatever the group.

A row that pads the last tile holds anything; it has a row of the result of its own, which is not written. D is never
padded.

Costs given to XLA are what the call has to compute and move: with more than one tile of rows, the weight is read again
for each.

Contract: `api`. Next: `tpu_tuning` (block sizes).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, DTypeLike, Float, Int32, Num

from kernels.pallas.quant_matmul import tpu_tuning
from kernels.pallas.quant_matmul.tpu_tuning import LANES, Blocks
from kernels.pallas.quant_matmul.weight import QuantWeight, stacked, stored_bytes

ROW_TYPES = ("bfloat16", "float32", "int8")
GROUPS_UNROLLED = 4  # a group's products end before the matrix unit is warm: this lets it begin the next one's
MOST_INT8_INPUTS = 2**31 // 127**2  # int32 sums of products of int8


def why_not(x_TD: jax.Array | jax.ShapeDtypeStruct, weight: QuantWeight) -> str | None:
    """Why the kernel does not serve these arguments, with what does; None where it does."""
    dtype = jnp.dtype(x_TD.dtype).name
    if dtype not in ROW_TYPES:
        return f"the TPU kernel multiplies rows of {', '.join(ROW_TYPES)}, not {dtype}"
    if weight.inputs % LANES:
        return f"the TPU kernel takes a multiple of {LANES} inputs, not {weight.inputs}"
    if LANES % weight.group and weight.group % LANES:
        return f"the TPU kernel takes groups that divide {LANES} or are multiples of it, not {weight.group}"
    if dtype == "int8" and weight.group > MOST_INT8_INPUTS:
        return f"int32 holds the products of {MOST_INT8_INPUTS} inputs, not {weight.group}: multiply rows as they are"
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
    interpret: Any = False,
) -> Float[Array, "T F"]:
    """The product in the contract's order.

    Args:
      x_TD: rows as they are multiplied: float, or int8 with scales.
      weight: the weight.
      row_scales_T: float32 factor of each row.
      layer: which of a stack of weights, read where it lies; None for a single one.
      out_dtype: of the result.
      blocks: sizes to use instead of the tuned ones.
      interpret: what `pallas_call` takes; `compat.tpu_interpreter()` to run on a CPU.
    """
    (T, D), F, G = x_TD.shape, weight.outputs, weight.groups
    blocks = blocks or tpu_tuning.blocks(x_TD, weight)
    tile_T, tile_F, cores = blocks.tile_tokens, blocks.tile_outputs, blocks.cores
    per_core = pl.cdiv(pl.cdiv(F, tile_F), cores)

    def at(core, step):  # where tiles do not divide by cores, the last core makes its last one twice
        return jnp.minimum(core * per_core + step, pl.cdiv(F, tile_F) - 1)

    static = Static(group=D // G, chunk=blocks.chunk, scaled_rows=row_scales_T is not None)
    stack, index = stacked(weight, layer)
    once = {"pipeline_mode": pl.Buffered(buffer_count=1)} if tile_T >= T else {}  # the same rows in every step
    rows = [] if row_scales_T is None else [row_scales_T[:, None]]
    sums = jnp.int32 if x_TD.dtype == jnp.int8 and G == 1 else jnp.float32
    return pl.pallas_call(
        functools.partial(_kernel, static=static),
        out_shape=jax.ShapeDtypeStruct((T, F), out_dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(cores, pl.cdiv(T, tile_T), per_core),
            in_specs=[
                pl.BlockSpec((tile_T, D), lambda c, t, f, layer: (t, 0), **once),
                pl.BlockSpec((None, tile_F, D), lambda c, t, f, layer: (layer[0], at(c, f), 0)),
                pl.BlockSpec((None, G, tile_F), lambda c, t, f, layer: (layer[0], 0, at(c, f))),
                *(pl.BlockSpec((tile_T, 1), lambda c, t, f, layer: (t, 0), **once) for _ in rows),
            ],
            out_specs=pl.BlockSpec((tile_T, tile_F), lambda c, t, f, layer: (t, at(c, f))),
            scratch_shapes=[pltpu.VMEM((G, tile_F), jnp.float32), pltpu.VMEM((tile_T, tile_F), sums)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        cost_estimate=cost(x_TD, weight, row_scales_T, out_dtype),
        interpret=interpret,
        name="quant_matmul",
    )(index, x_TD, stack.values, stack.scales, *rows)


def cost(x_TD, weight: QuantWeight, row_scales_T, out_dtype: DTypeLike) -> pl.CostEstimate:
    """What the product computes, and the bytes of its arguments and its result as they lie in memory."""
    (T, D), F = x_TD.shape, weight.outputs
    arrays = [x_TD, jax.ShapeDtypeStruct((T, F), out_dtype)]
    arrays += [] if row_scales_T is None else [row_scales_T]
    weight_bytes = (stored_bytes(weight.values) + stored_bytes(weight.scales)) // (weight.layers or 1)
    moved = weight_bytes + sum(map(stored_bytes, arrays))
    return pl.CostEstimate(flops=2 * T * D * F, bytes_accessed=moved, transcendentals=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """What the kernel knows when it is compiled.

    Attributes:
      group: weights along D that share a scale.
      chunk: inputs multiplied at a time: a group of 128 or more, or part of the only one; 128 for smaller groups.
      scaled_rows: whether rows of x have scales.
    """

    group: int
    chunk: int
    scaled_rows: bool

    @property
    def parts(self) -> int:
        """Groups in a chunk."""
        return max(1, self.chunk // self.group)


def _kernel(
    layer,  # [1], for the copies of the weight
    x,  # [tile_tokens, D]
    values,  # [tile_outputs, D]
    scales,  # [G, tile_outputs]
    *refs,  # [tile_tokens, 1] scales of the rows if they have any; result [tile_tokens, tile_outputs]; scratch
    static: Static,
):
    """One tile of the result."""
    del layer
    *rows, out, scales_f32, sums = refs
    scales_f32[...] = scales[...].astype(jnp.float32)  # rows of packed bf16 cannot be read one at a time
    sums[...] = jnp.zeros_like(sums)
    groups = scales.shape[0]

    @pl.loop(0, x.shape[1] // static.chunk, unroll=1 if groups == 1 else GROUPS_UNROLLED)
    def _(index):
        at = pl.ds(pl.multiple_of(index * static.chunk, LANES), static.chunk)
        product = _product(_apart(x[:, at], static), values[:, at])
        if groups == 1:
            sums[...] += product
            return
        for part in range(static.parts):
            own = product[part * x.shape[0] : (part + 1) * x.shape[0]].astype(jnp.float32)
            sums[...] += own * scales_f32[pl.ds(index * static.parts + part, 1), :]

    total = sums[...].astype(jnp.float32)
    if groups == 1:
        total = total * scales_f32[...]
    if static.scaled_rows:
        total = total * rows[0][...]
    out[...] = total.astype(out.dtype)


def _apart(x: jax.Array, static: Static) -> jax.Array:
    """Rows [parts * tokens, chunk] of x: a copy for each group in the chunk, zero outside it."""
    if static.parts == 1:
        return x
    group_of_lane = lax.div(lax.broadcasted_iota(jnp.int32, x.shape, 1), jnp.int32(static.group))
    wide = x.astype(jnp.float32)  # there is no select of packed numbers on every chip
    copies = [jnp.where(group_of_lane == part, wide, 0.0) for part in range(static.parts)]
    return jnp.concatenate(copies, axis=0).astype(x.dtype)


def _product(x: jax.Array, values: jax.Array) -> jax.Array:
    """`x @ values.T`, summed in int32 for integers and in float32 otherwise."""
    sums = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    dims = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, values.astype(x.dtype), dims, precision=precision, preferred_element_type=sums)
