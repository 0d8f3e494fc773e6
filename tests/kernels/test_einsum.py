"""Products are summed in float32 and rounded once, whatever the operands."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas import einsum
from kernels.pallas.einsum import einsum_as, einsum_f32


def operands(dtype):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(4, 4096)), dtype), jnp.asarray(rng.normal(size=(4096, 8)), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sums_are_float32(dtype):
    a, b = operands(dtype)
    want = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    got = jax.jit(einsum_f32, static_argnums=0)("ij,jk->ik", a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=2e-4)  # sums of order 64; bf16 sums would be off by 0.1 and more


def test_a_small_result_is_the_float32_result_rounded_once():
    a, b = operands(jnp.bfloat16)
    small = jax.jit(einsum_as, static_argnums=(0, 1))(jnp.bfloat16, "ij,jk->ik", a, b)
    np.testing.assert_array_equal(small, einsum_f32("ij,jk->ik", a, b).astype(jnp.bfloat16))


@pytest.mark.parametrize("subscripts", ["ij,jk->ik", "ij,kj->ik"])
def test_a_lone_row_is_multiplied_on_gpus_as_part_of_a_tile_with_the_same_result(subscripts):
    a, b = operands(jnp.bfloat16)
    row, matrix = a[:1], b if subscripts == "ij,jk->ik" else b.T
    multiply = functools.partial(jnp.einsum, subscripts, preferred_element_type=jnp.float32)
    tiled = jax.jit(functools.partial(einsum._as_a_tile, multiply))(row, matrix)
    np.testing.assert_allclose(tiled, einsum_f32(subscripts, row, matrix), atol=2e-4)


@pytest.mark.parametrize(
    ("rows", "dtype", "result", "tiled"),
    [(1, "bfloat16", "float32", True), (2, "bfloat16", "float32", False), (1, "float32", "float32", False),
     (1, "bfloat16", "bfloat16", False)],
)  # fmt: skip
def test_only_a_lone_row_of_small_numbers_with_a_float32_result_is_part_of_a_tile(rows, dtype, result, tiled):
    shapes = jax.ShapeDtypeStruct((rows, 64), dtype), jax.ShapeDtypeStruct((64, 32), dtype)
    product = jax.jit(functools.partial(einsum_as, result, "ij,jk->ik"))
    text = product.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert (f"tensor<{einsum.CUDA_TILE_ROWS}x64x" in text) == tiled
    assert f"tensor<{einsum.CUDA_TILE_ROWS}x64x" not in product.trace(*shapes).lower().as_text()
