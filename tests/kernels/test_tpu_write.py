"""Writes to a TPU's pages, run by the interpreter that watches for races, against the scatter that they replace."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from kernels.pallas import compat
from kernels.pallas.paged_attention import api, tpu, tpu_write, tpu_write8, xla
from nanoserve.model.pool import NOWHERE

HEADS, HEAD_SIZE, PAGES, FIRST_PAGE = 2, 8, 20, 3
TOKENS = 76  # of every call on 8-bit pages, so that each page size and type compiles once
WRITE = jax.jit(lambda *args: tpu.write_kv(*args, interpret=compat.tpu_interpreter(detect_races=True)))
SCATTER = jax.jit(xla.write_kv)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def random_bits(rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Elements of any bit pattern, NaN of every kind included."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    return rng.integers(0, 256, (*shape, kind.itemsize), np.uint8).view(kind)[..., 0]


def bits(array) -> np.ndarray:
    array = np.asarray(array)
    return array.view(f"uint{8 * array.dtype.itemsize}")


def written(dtype: str, page_tokens: int, places: list[tuple[int, int]], *, scaled: bool = False, seed: int = 1):
    """A pool's bits, and its scales', after random tokens were written at (page, offset); and what a scatter leaves."""
    rng = np.random.default_rng(seed)
    pages_T, offsets_T = np.array(places, np.int32).T
    pool, new = (PAGES, page_tokens, HEADS, 2), (len(places), HEADS, 2)
    kv_pages, kv = random_bits(rng, (*pool, HEAD_SIZE), dtype), random_bits(rng, (*new, HEAD_SIZE), dtype)
    scales = [random_bits(rng, shape, "float32") for shape in (pool, new)] if scaled else []
    got = WRITE(kv_pages, kv, pages_T, offsets_T, FIRST_PAGE, *scales)
    want = SCATTER(bits(kv_pages), bits(kv), pages_T, offsets_T, FIRST_PAGE, *map(bits, scales))
    return jax.tree.map(bits, got), jax.tree.map(np.asarray, want)


def check(*call, **options) -> None:
    """Every bit of the pool is what a scatter leaves, and nothing raced on the way."""
    got, want = written(*call, **options)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert not compat.tpu_races_found()


def rows(lengths: list[tuple[int, int]], page_tokens: int, seed: int = 2) -> list[tuple[int, int]]:
    """Places of the new tokens of rows, given as (position of the first, how many); each row has pages of its own."""
    free = iter(np.random.default_rng(seed).permutation(PAGES - FIRST_PAGE))
    places = []
    for first, count in lengths:
        own = {page: next(free) for page in range(first // page_tokens, -(-(first + count) // page_tokens))}
        places += [(own[position // page_tokens], position % page_tokens) for position in range(first, first + count)]
    return places


def padded(places: list[tuple[int, int]], tokens: int = TOKENS) -> list[tuple[int, int]]:
    """Places, and tokens that are written nowhere at the end."""
    assert len(places) <= tokens
    return places + [(NOWHERE, 0)] * (tokens - len(places))


# Whole words.


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tokens", [1, tpu_write.IN_FLIGHT - 3, tpu_write.IN_FLIGHT, 2 * tpu_write.IN_FLIGHT + 5])
def test_tokens_at_random_places_are_where_the_scatter_puts_them(dtype, tokens):
    rng = np.random.default_rng(tokens)
    chosen = rng.permutation((PAGES - FIRST_PAGE) * 4)[:tokens]
    places = [(NOWHERE if i % 5 == 3 else place // 4, place % 4) for i, place in enumerate(chosen.tolist())]
    check(dtype, 4, places)


def test_a_token_of_the_page_after_the_last_is_written_nowhere():
    check("float32", 4, [(PAGES - FIRST_PAGE - 1, 0), (PAGES - FIRST_PAGE, 0), (NOWHERE, 0)])


# 8 bits.


@pytest.mark.parametrize(("dtype", "page_tokens"), [("int8", 16), ("int8", 64), ("float8_e4m3fn", 64)])
def test_a_token_of_each_decode_row_is_where_the_scatter_puts_it(dtype, page_tokens):
    positions = [0, 15, 16, 31, 32, 33, 47, 48, 63, 64, 70, 8, 5]  # more rows than are on their way at once
    places = rows([(position, 1) for position in positions], page_tokens)
    places[3] = places[4] = (NOWHERE, 5)  # rows that are padding
    assert len(places) > tpu_write8.IN_FLIGHT
    check(dtype, page_tokens, padded(places), scaled=True)


@pytest.mark.parametrize(("dtype", "page_tokens"), [("int8", 16), ("int8", 64), ("float8_e4m3fn", 64)])
def test_prompt_chunks_with_partial_first_and_last_pages_are_where_the_scatter_puts_them(dtype, page_tokens):
    chunks = [(13, 51), (64, 1), (30, 3), (0, 16), (63, 2)]
    check(dtype, page_tokens, padded(rows(chunks, page_tokens)), scaled=True)


chunks = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 25)), min_size=1, max_size=3)


@hypothesis.given(chunks=chunks, nowhere_first=st.booleans(), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=6)
def test_any_chunks_are_where_the_scatter_puts_them(chunks, nowhere_first, seed):
    places = rows(chunks, 16, seed)
    places = padded(places[::-1])[::-1] if nowhere_first else padded(places)
    check("int8", 16, places, scaled=True, seed=seed)


def test_a_call_that_writes_nothing_leaves_every_bit():
    check("int8", 64, padded([]), scaled=True)


@pytest.mark.parametrize("page_tokens", [12, 48])
def test_pages_that_are_no_multiple_of_a_window_are_written_whole(page_tokens):
    check("int8", page_tokens, padded(rows([(9, 30), (47, 1), (40, 20)], page_tokens)), scaled=True)


def test_8_bit_pages_that_hold_the_numbers_themselves_need_no_scales():
    check("float8_e5m2", 64, padded(rows([(20, 60), (5, 1)], 64)))


def test_of_tokens_of_one_window_that_do_not_come_together_one_is_lost():
    """The contract forbids this call. That the checks above see it is because copies arrive as late as they may."""
    (pages, _), (want, _) = written("int8", 64, padded([(0, 3), (1, 3), (0, 4)]), scaled=True)
    assert np.argwhere((pages != want).any(axis=(2, 3, 4))).tolist() == [[FIRST_PAGE, 3]]


# The contract.


def small_call(rng):
    """Pages of int8, new tokens, and places for them; and scales of 1 for the pages."""
    pool, new = (PAGES, 16, HEADS, 2), (2, HEADS, 2)
    kv_pages, kv = (jnp.asarray(random_bits(rng, (*shape, HEAD_SIZE), "int8")) for shape in (pool, new))
    return kv_pages, kv, jnp.array([4, 1]), jnp.array([3, 15]), jnp.ones(pool)


@pytest.mark.parametrize("implementation", ["xla", "pallas_tpu_interpret", "pallas_gpu_interpret"])
def test_every_implementation_puts_a_token_and_its_scales_at_its_page_and_offset(implementation):
    kv_pages, kv, pages_T, offsets_T, kv_scales = small_call(np.random.default_rng(5))
    scales = {"kv_scales": kv_scales, "scales_TK2": jnp.zeros((2, HEADS, 2))}
    options = {"first_page": 2, "implementation": implementation}
    got, factors = api.write_kv(kv_pages, kv, pages_T, offsets_T, **scales, **options)
    np.testing.assert_array_equal(got[pages_T + 2, offsets_T], kv)
    assert np.argwhere((np.asarray(factors) == 0).all(axis=(2, 3))).tolist() == [[3, 15], [6, 3]]


def test_scales_of_the_pool_without_scales_of_the_tokens_are_refused():
    *call, kv_scales = small_call(np.random.default_rng(6))
    with pytest.raises(ValueError, match="a pool with scales takes tokens with scales"):
        api.write_kv(*call, kv_scales=kv_scales, implementation="xla")
