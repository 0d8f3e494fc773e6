"""Products are summed in float32 and rounded once, whatever the operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
