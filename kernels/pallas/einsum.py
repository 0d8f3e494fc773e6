"""Matrix products that mean the same number on every chip: multiplied as given, summed in float32, rounded once."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float


def einsum_f32(subscripts: str, *operands: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` with a float32 result."""
    return einsum_as(jnp.float32, subscripts, *operands)


def einsum_as(dtype: DTypeLike, subscripts: str, *operands: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` with a result of `dtype`.

    float32 operands are multiplied as float32: GPUs and TPUs would otherwise round them to TF32 or bf16 first. Smaller
    operands are exact in the chip's own units, which sum in float32 whatever the result is. Asking for a small result,
    rather than casting a float32 one, keeps an all-reduce that tensor parallelism puts between the two small as well.
    """
    exact = any(operand.dtype == jnp.float32 for operand in operands)
    precision = lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT
    return jnp.einsum(subscripts, *operands, precision=precision, preferred_element_type=jnp.dtype(dtype))
