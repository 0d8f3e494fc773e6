"""Products with quantised weights in plain XLA: any chip, any shape, the arithmetic of the kernels.

The order is the contract's: the products of one group are summed (in float32; int8 by int8 in int32, exactly), the sum
is multiplied by the group's scale, groups are added in order, then comes the scale of the row, and one rounding. No
weight is ever rounded to a float of fewer bits than it needs: int4, int8 and fp8 are exact in bf16 and f16.

Groups are walked in a loop, whose float32 sums [T, F] are all it needs beside its arguments. Contract: `api`.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int32, Num

from kernels.pallas.einsum import einsum_f32
from kernels.pallas.quant_matmul.weight import QuantWeight


def why_not(x_TD, weight: QuantWeight) -> str | None:
    """None: every shape and dtype is served."""
    del x_TD, weight


def matmul(
    x_TD: Num[Array, "T D"],
    weight: QuantWeight,
    row_scales_T: Float[Array, " T"] | None = None,
    *,
    layer: Int32[Array, ""] | None = None,
    out_dtype: DTypeLike,
) -> Float[Array, "T F"]:
    """The product in the contract's order.

    Args:
      x_TD: rows as they are multiplied: float, or int8 or fp8 with scales.
      weight: the weight.
      row_scales_T: float32 factor of each row.
      layer: which of a stack of weights; None for a single one.
      out_dtype: of the result.
    """
    if layer is not None:
        weight = jax.tree.map(lambda stack: lax.dynamic_index_in_dim(stack, layer, keepdims=False), weight)
    scales_GF = weight.scales.astype(jnp.float32)
    if weight.groups == 1:
        sums_TF = _product(x_TD, weight.values) * scales_GF[0]
    else:
        sums_TF = lax.fori_loop(0, weight.groups, _add_group(x_TD, weight.values, scales_GF), _zeros(x_TD, weight))
    if row_scales_T is not None:
        sums_TF = sums_TF * row_scales_T[:, None]
    return sums_TF.astype(out_dtype)


def _zeros(x_TD: jax.Array, weight: QuantWeight) -> jax.Array:
    return jnp.zeros((x_TD.shape[0], weight.outputs), jnp.float32)


def _add_group(x_TD: jax.Array, values_FD: jax.Array, scales_GF: jax.Array):
    """The body of the loop over groups."""
    group = x_TD.shape[1] // scales_GF.shape[0]

    def body(index, sums_TF):
        x_Td, values_Fd = (lax.dynamic_slice_in_dim(a, index * group, group, axis=1) for a in (x_TD, values_FD))
        return sums_TF + _product(x_Td, values_Fd) * scales_GF[index]

    return body


def _product(x_TD: jax.Array, values_FD: jax.Array) -> jax.Array:
    """`x @ values.T` in float32; integers are summed as such."""
    if jnp.issubdtype(x_TD.dtype, jnp.integer):
        sums = jnp.einsum("TD,FD->TF", x_TD, values_FD.astype(x_TD.dtype), preferred_element_type=jnp.int32)
        return sums.astype(jnp.float32)
    return einsum_f32("TD,FD->TF", x_TD, values_FD.astype(x_TD.dtype))
