"""Matrix products that mean the same number on every chip: multiplied as given, summed in float32, rounded once."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float

CUDA_TILE_ROWS = 8  # the fewest rows that cuBLAS multiplies as they are; XLA pads others by a kernel of its own


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
    multiply = functools.partial(jnp.einsum, subscripts, precision=precision, preferred_element_type=jnp.dtype(dtype))
    lone_row = [operand.ndim for operand in operands] == [2, 2] and operands[0].shape[0] == 1
    if exact or jnp.dtype(dtype) != jnp.float32 or not lone_row:
        return multiply(*operands)
    return lax.platform_dependent(*operands, cuda=functools.partial(_as_a_tile, multiply), default=multiply)


def _as_a_tile(multiply: Callable, row: Float[Array, "1 D"], matrix: Float[Array, "..."]) -> Float[Array, "1 F"]:
    """One row's product with a float32 result, as that of a tile whose other rows are zeros.

    XLA for GPUs multiplies a lone row by a vector product, which has no float32 result of smaller operands: it would
    write the whole matrix out as float32 first, and multiply that. The barrier keeps it from seeing the lone row.
    """
    tile = jnp.pad(row, ((0, CUDA_TILE_ROWS - 1), (0, 0)))
    return lax.optimization_barrier(multiply(tile, matrix))[:1]
