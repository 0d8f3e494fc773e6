"""Paged attention against the NumPy oracle, and the promises of its contract."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas.paged_attention import api, arg_specs, reference, xla
from nanoserve.specs.errors import ConfigError

F32_TOLERANCE = 2e-6
BF16_TOLERANCE = 2e-2  # results of order 1, rounded to 8 bits

decode = jax.jit(api.decode_attention, static_argnames=("scale", "window", "soft_cap", "implementation"))
prefill = jax.jit(api.prefill_attention, static_argnames=("scale", "window", "soft_cap", "implementation"))


def tolerance(shape: arg_specs.Shape) -> float:
    return BF16_TOLERANCE if shape.dtype == "bfloat16" else F32_TOLERANCE


@pytest.mark.parametrize("name", arg_specs.DECODE)
def test_decode_matches_the_oracle_on_a_poisoned_pool(name):
    shape = arg_specs.DECODE[name]
    args = arg_specs.make_decode(shape, seed=1)
    got = decode(*args.values(), **shape.options)
    assert got.dtype == jnp.dtype(shape.dtype)
    want = reference.decode_attention(*args.values(), **shape.options)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=tolerance(shape), rtol=0)


@pytest.mark.parametrize("name", arg_specs.PREFILL)
def test_prefill_matches_the_oracle_on_a_poisoned_pool(name):
    shape = arg_specs.PREFILL[name]
    args = arg_specs.make_prefill(shape, seed=2)
    got = prefill(*args.values(), **shape.options)
    assert got.dtype == jnp.dtype(shape.dtype)
    want = reference.prefill_attention(*args.values(), **shape.options)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=tolerance(shape), rtol=0)


@pytest.mark.parametrize(("kind", "dtype"), [("decode", "int8"), ("decode", "float8_e4m3fn"), ("prefill", "int8")])
def test_8_bit_pages_and_their_scales_match_the_oracle(kind, dtype):
    shape = arg_specs.Shape(kv_lens=(0, 300, 5), q_lens=(0, 9, 5))
    args = getattr(arg_specs, f"make_{kind}")(shape, seed=3)
    args["kv_pages"], kv_scales = arg_specs.quantised(args["kv_pages"], dtype)
    got = {"decode": decode, "prefill": prefill}[kind](*args.values(), **shape.options, kv_scales=kv_scales)
    want = getattr(reference, f"{kind}_attention")(*args.values(), **shape.options, kv_scales=kv_scales)
    np.testing.assert_allclose(got, want, atol=F32_TOLERANCE, rtol=0)


def test_the_oracle_of_8_bit_pages_is_the_oracle_of_the_numbers_they_stand_for():
    shape = arg_specs.Shape(kv_lens=(33, 5))
    args = arg_specs.make_decode(shape, seed=3)
    pages, scales = arg_specs.quantised(args["kv_pages"], "int8")
    numbers = args | {"kv_pages": pages.astype(np.float64) * scales[..., None]}
    want = reference.decode_attention(*numbers.values(), **shape.options)
    got = reference.decode_attention(*(args | {"kv_pages": pages}).values(), **shape.options, kv_scales=scales)
    np.testing.assert_allclose(got, want, atol=1e-12, rtol=0)


def test_the_poison_reaches_the_result_when_a_length_is_wrong():
    """The NaN tests above can fail: one position too many and the result is NaN."""
    shape = arg_specs.DECODE["edges_page_16"]
    args = arg_specs.make_decode(shape, seed=1) | {"kv_lens": np.array([0, 2, 16, 16, 18], np.int32)}
    got = decode(*args.values(), **shape.options)
    assert np.isnan(got).any(axis=(1, 2)).tolist() == [False, True, True, False, True]


def padded(args: dict[str, np.ndarray], pages: int = 64, tokens: int = 80) -> dict[str, np.ndarray]:
    """The same case with more pool, table and padding tokens, so that every example has one shape and compiles once."""
    kv_pages, table, q = args["kv_pages"], args["page_table"], args["q"]
    args["kv_pages"] = np.pad(kv_pages, ((0, pages - len(kv_pages)), *[(0, 0)] * 4), constant_values=np.nan)
    args["page_table"] = np.pad(table, ((0, 0), (0, 16 - table.shape[1])), constant_values=-1)
    if "cu_q_lens" in args:
        args["q"] = np.pad(q, ((0, tokens - len(q)), (0, 0), (0, 0)), constant_values=np.nan)
    return args


SMALL = {"page_tokens": 4, "head_size": 8}
lengths = st.lists(st.integers(0, 40), min_size=4, max_size=4)


@hypothesis.given(lengths=lengths, window=st.sampled_from([None, 7]), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=25, deadline=None)
def test_decode_of_any_lengths_matches_the_oracle(lengths, window, seed):
    shape = arg_specs.Shape(kv_lens=tuple(lengths), window=window, **SMALL)
    args = padded(arg_specs.make_decode(shape, seed))
    want = reference.decode_attention(*args.values(), **shape.options)
    np.testing.assert_allclose(decode(*args.values(), **shape.options), want, atol=F32_TOLERANCE, rtol=0)


chunks = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=4, max_size=4)


@hypothesis.given(chunks=chunks, window=st.sampled_from([None, 7]), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=25, deadline=None)
def test_prefill_of_any_chunks_matches_the_oracle(chunks, window, seed):
    kv_lens = tuple(past + new if new else 0 for past, new in chunks)
    q_lens = tuple(new for _, new in chunks)
    shape = arg_specs.Shape(kv_lens=kv_lens, q_lens=q_lens, window=window, **SMALL)
    args = padded(arg_specs.make_prefill(shape, seed, padding_tokens=0))
    want = reference.prefill_attention(*args.values(), **shape.options)
    np.testing.assert_allclose(prefill(*args.values(), **shape.options), want, atol=F32_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["edges_page_16", "several_chunks", "window", "bf16"])
def test_a_decode_row_has_the_same_bits_whatever_its_neighbours(name):
    shape = arg_specs.DECODE[name]
    args = arg_specs.make_decode(shape, seed=3)
    together = decode(*args.values(), **shape.options)
    for row, _ in enumerate(shape.kv_lens):
        others = {"kv_lens": np.where(np.arange(len(shape.kv_lens)) == row, args["kv_lens"], 0)}
        alone = decode(*(args | others).values(), **shape.options)
        np.testing.assert_array_equal(alone[row], together[row])


def test_a_chunk_has_the_same_bits_whatever_follows_it():
    shape = arg_specs.PREFILL["several_blocks"]
    args = arg_specs.make_prefill(shape, seed=3)
    together = prefill(*args.values(), **shape.options)
    first = {"kv_lens": np.array([300, 0, 0], np.int32), "cu_q_lens": np.array([0, 300, 300, 300], np.int32)}
    alone = prefill(*(args | first).values(), **shape.options)
    np.testing.assert_array_equal(alone[:300], together[:300])
    assert not alone[300:].any()


def test_renaming_pages_changes_no_bit():
    shape = arg_specs.PREFILL["after_a_past"]
    args = arg_specs.make_prefill(shape, seed=4)
    want = prefill(*args.values(), **shape.options)
    pages = len(args["kv_pages"])
    order = np.random.default_rng(5).permutation(pages)
    renamed = args | {"kv_pages": np.empty_like(args["kv_pages"]), "page_table": args["page_table"].copy()}
    renamed["kv_pages"][order] = args["kv_pages"]
    inside = (args["page_table"] >= 0) & (args["page_table"] < pages)
    renamed["page_table"][inside] = order[args["page_table"][inside]]
    np.testing.assert_array_equal(prefill(*renamed.values(), **shape.options), want)


def test_a_chunk_split_in_two_gives_the_same_values():
    whole = arg_specs.Shape(kv_lens=(200,), q_lens=(200,))
    args = arg_specs.make_prefill(whole, seed=6, padding_tokens=0)
    want = prefill(*args.values(), **whole.options)
    for start, end in ((0, 70), (70, 200)):
        part = {"kv_lens": np.array([end], np.int32), "cu_q_lens": np.array([0, end - start], np.int32)}
        got = prefill(*(args | part | {"q": args["q"][start:end]}).values(), **whole.options)
        np.testing.assert_allclose(got, want[start:end], atol=F32_TOLERANCE, rtol=0)


def test_a_prefill_of_one_token_is_a_decode():
    shape = dataclasses.replace(arg_specs.DECODE["several_chunks"], q_lens=(1, 1, 1, 1))
    args = arg_specs.make_prefill(shape, seed=7, padding_tokens=0)
    got = prefill(*args.values(), **shape.options)
    del args["cu_q_lens"]
    np.testing.assert_allclose(got, decode(*args.values(), **shape.options), atol=F32_TOLERANCE, rtol=0)


def test_gathered_tokens_count_whole_chunks_up_to_the_longest_row():
    assert xla.decode_gathered_tokens(np.array([700, 5, 0]), page_tokens=16, table_pages=64) == 3 * 3 * 256
    assert xla.decode_gathered_tokens(np.array([700, 690]), page_tokens=16, table_pages=64, window=20) == 2 * 256
    assert xla.decode_gathered_tokens(np.array([0, 0]), page_tokens=16, table_pages=64) == 0
    assert xla.decode_gathered_tokens(np.array([9]), page_tokens=16, table_pages=2) == 32
    blocks = xla.prefill_gathered_tokens(np.array([300, 0]), np.array([300, 0]), 512, page_tokens=16, table_pages=64)
    assert blocks == 256 + 256 + 512  # queries 0-127, 128-255, 256-299


def test_an_implementation_that_does_not_exist_is_refused_by_name():
    args = arg_specs.make_decode(arg_specs.DECODE["multi_head"], seed=1)
    with pytest.raises(ConfigError, match=r"no implementation 'xlaa'.*Did you mean 'xla'\?"):
        api.decode_attention(*args.values(), scale=1.0, implementation="xlaa")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kv_pages", np.zeros((2, 16, 2, 64)), "kv_pages is"),
        ("q", np.zeros((2, 3, 64)), "do not fit pages"),
        ("page_table", np.zeros((3, 2), np.int32), "one length per row"),
        ("kv_lens", np.zeros(2), "must be integers"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, value, message):
    shape = arg_specs.Shape(kv_lens=(3, 3), groups=2)
    args = arg_specs.make_decode(shape, seed=1) | {name: jnp.asarray(value)}
    with pytest.raises(ValueError, match=message):
        api.decode_attention(*args.values(), **shape.options)


def test_scales_that_do_not_fit_the_pages_are_refused():
    shape = arg_specs.Shape(kv_lens=(3, 3))
    args = arg_specs.make_decode(shape, seed=1)
    with pytest.raises(ValueError, match=r"kv_scales is \[P, p, K, 2\] of pages"):
        api.decode_attention(*map(jnp.asarray, args.values()), **shape.options, kv_scales=jnp.ones(3))
