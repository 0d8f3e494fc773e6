"""The KV pool: what is written, where, and how exactly 8-bit pages hold it."""

import jax.numpy as jnp
import numpy as np
import pytest

from nanoserve.model.pool import (
    NOWHERE,
    KvPool,
    Slots,
    by_layer,
    empty_pool,
    needs_scales,
    one_run,
    quantised,
    slots_of,
    write,
)
from tests.model.factories import TINY

KINDS = {"int8": 127, "float8_e4m3fn": 448}
FP8_HALF_STEP = 2.0**-4  # three bits after the leading one, to nearest


def test_keys_and_values_land_where_they_belong():
    k, v = np.ones((3, 2, 4), np.float32), 2 * np.ones((3, 2, 4), np.float32)
    pool = write(KvPool(jnp.zeros((5, 4, 2, 2, 4))), k, v, Slots(jnp.array([4, 1, 5]), jnp.array([0, 2, 3])))
    written = np.argwhere(np.asarray(pool.pages).any(axis=(2, 3, 4)))
    assert written.tolist() == [[1, 2], [4, 0]]  # page 5 of 5 is dropped
    assert (pool.pages[4, 0, :, 0] == 1).all() and (pool.pages[4, 0, :, 1] == 2).all()


@pytest.mark.parametrize("dtype", KINDS)
def test_8_bit_pages_hold_a_token_and_its_factors_at_the_same_place(dtype):
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 3, 2, 8)).astype(np.float32)
    empty = empty_pool(TINY, pages=5, page_tokens=4, dtype=dtype)
    pool = write(one_run(empty), k, v, Slots(jnp.array([4, 1, NOWHERE]), jnp.array([0, 2, 3])))
    for token, place in ((0, (4, 0)), (1, (1, 2))):
        held = np.asarray(pool.pages[place], np.float32) * np.asarray(pool.scales[place])[..., None]
        np.testing.assert_allclose(held[:, 0], k[token], atol=np.abs(k[token]).max() * FP8_HALF_STEP)
        np.testing.assert_allclose(held[:, 1], v[token], atol=np.abs(v[token]).max() * FP8_HALF_STEP)
    assert np.count_nonzero(pool.scales) == 2 * TINY.kv_heads * 2
    assert by_layer(pool, empty).pages.shape == empty.pages.shape


def test_the_largest_element_of_a_vector_takes_the_largest_number():
    x = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    for dtype, largest in KINDS.items():
        quotients, scales = quantised(x, dtype)
        assert (np.abs(np.asarray(quotients, np.float32)).max(axis=-1) == largest).all()
        np.testing.assert_allclose(scales * largest, np.abs(x).max(axis=-1), rtol=1e-6)


def test_int8_is_within_half_a_step_and_float8_within_half_of_its_last_bit():
    x = np.random.default_rng(2).standard_normal((40, 16)).astype(np.float32)
    quotients, scales = quantised(x, "int8")
    assert (np.abs(quotients * scales[:, None] - x) <= 0.5001 * scales[:, None]).all()
    quotients, scales = quantised(x, "float8_e4m3fn")
    error = np.abs(np.asarray(quotients, np.float32) * scales[:, None] - x)
    smallest = scales[:, None] * 2.0**-10  # half a step of the subnormal numbers
    assert (error <= np.maximum(np.abs(x) * FP8_HALF_STEP, smallest) * 1.0001).all()


def test_a_vector_of_zeros_stays_zeros():
    quotients, scales = quantised(np.zeros((2, 4), np.float32), "int8")
    assert not quotients.any() and not scales.any()


def test_only_8_bit_pages_have_factors():
    assert [needs_scales(dtype) for dtype in ("float32", "bfloat16", "int8", "float8_e4m3fn")] == [
        False,
        False,
        True,
        True,
    ]
    assert empty_pool(TINY, pages=2, page_tokens=4, dtype="bfloat16").scales is None


def test_a_token_is_written_nowhere_rather_than_where_it_should_not_be():
    pool = empty_pool(TINY, pages=5, page_tokens=4, dtype="bfloat16")
    table = jnp.array([[3, 1], [-1, 7]])
    rows, positions = jnp.array([0, 0, 0, 1, 1, 0]), jnp.array([0, 6, 8, 0, 4, 1])
    slots = slots_of(pool, table, rows, positions, jnp.array([True] * 5 + [False]))
    beyond_the_table, no_page, not_in_the_pool, padding = [NOWHERE] * 4
    assert slots.pages_T.tolist() == [3, 1, beyond_the_table, no_page, not_in_the_pool, padding]
    assert slots.offsets_T.tolist()[:2] == [0, 2]
