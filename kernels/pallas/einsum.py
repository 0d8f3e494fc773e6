"""Matrix products that mean the same number on every chip."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float


def einsum_f32(subscripts: str, *operands: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` that accumulates and returns float32.

    float32 operands are multiplied as float32: GPUs and TPUs would otherwise round them to TF32 or bf16 first. Smaller
    operands are exact in the chip's own units and take the fast path.
    """
    exact = any(operand.dtype == jnp.float32 for operand in operands)
    precision = lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT
    return jnp.einsum(subscripts, *operands, precision=precision, preferred_element_type=jnp.float32)


def einsum_as(dtype: DTypeLike, subscripts: str, *operands: Float[Array, "..."]) -> Float[Array, "..."]:
    """`einsum_f32` rounded once, to `dtype`, at the end."""
    return einsum_f32(subscripts, *operands).astype(dtype)
