"""Paged attention in XLA, and the contract: its promises, against the NumPy oracle, and what it refuses."""

import dataclasses
import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas.paged_attention import api, arg_specs, reference, xla
from kernels.pallas.paged_attention.arg_specs import Shape
from nanoserve.specs.errors import ConfigError
from tests.kernels import promises
from tests.kernels.promises import F32_TOLERANCE, Arguments, Case, called, of_kind

STATIC = ("scale", "window", "soft_cap", "implementation")
decode = functools.partial(jax.jit(api.decode_attention, static_argnames=STATIC), implementation="xla")
prefill = functools.partial(jax.jit(api.prefill_attention, static_argnames=STATIC), implementation="xla")
ATTENTION = {"decode": decode, "prefill": prefill}


def run(case: Case, args: Arguments, **options) -> np.ndarray:
    got = called(ATTENTION[case.kind], args, **case.shape.options, **options)
    assert got.dtype == jnp.dtype(case.shape.dtype)
    return np.asarray(got, np.float64)


QUANTISED = Shape(kv_lens=(0, 300, 5), q_lens=(0, 9, 5))

CASES = {
    **of_kind("decode", arg_specs.DECODE),
    **of_kind("prefill", arg_specs.PREFILL),
    **of_kind("decode", {"int8": QUANTISED}, quantised="int8"),
    **of_kind("decode", {"fp8": QUANTISED}, quantised="float8_e4m3fn"),
    **of_kind("prefill", {"int8": QUANTISED}, quantised="int8"),
}
NEIGHBOURS = {
    "edges_page_16": (CASES["decode-edges_page_16"], range(5)),
    "several_chunks": (CASES["decode-several_chunks"], range(4)),
    "window": (CASES["decode-window"], range(5)),
    "bf16": (CASES["decode-bf16"], range(2)),
    "several_blocks": (CASES["prefill-several_blocks"], [0]),
}


class TestXla(promises.Promises):
    run = staticmethod(run)
    cases = CASES
    edges = CASES["decode-edges_page_16"]
    neighbours = NEIGHBOURS


def test_the_oracle_of_8_bit_pages_is_the_oracle_of_the_numbers_they_stand_for():
    shape = Shape(kv_lens=(33, 5))
    args = arg_specs.make_decode(shape, seed=3)
    pages, scales = arg_specs.quantised(args["kv_pages"], "int8")
    numbers = args | {"kv_pages": pages.astype(np.float64) * scales[..., None]}
    want = reference.decode_attention(*numbers.values(), **shape.options)
    got = reference.decode_attention(*(args | {"kv_pages": pages}).values(), **shape.options, kv_scales=scales)
    np.testing.assert_allclose(got, want, atol=1e-12, rtol=0)


SMALL: dict[str, Any] = {"page_tokens": 4, "head_size": 8}
lengths = st.lists(st.integers(0, 40), min_size=4, max_size=4)


@hypothesis.given(lengths=lengths, window=st.sampled_from([None, 7]), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=25)
def test_decode_of_any_lengths_matches_the_oracle(lengths, window, seed):
    matches("decode", Shape(kv_lens=tuple(lengths), window=window, **SMALL), seed)


chunks = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=4, max_size=4)


@hypothesis.given(chunks=chunks, window=st.sampled_from([None, 7]), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=25)
def test_prefill_of_any_chunks_matches_the_oracle(chunks, window, seed):
    matches("prefill", promises.chunks_shape(chunks, window=window, **SMALL), seed)


def matches(kind: str, shape: Shape, seed: int) -> None:
    case = Case(kind=kind, shape=shape)
    args = promises.padded(case.make(seed), pages=64, table_pages=16, tokens=83)
    np.testing.assert_allclose(run(case, args), case.want(args), atol=F32_TOLERANCE, rtol=0)


def test_a_chunk_split_in_two_gives_the_same_values():
    whole = Shape(kv_lens=(200,), q_lens=(200,))
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


@pytest.mark.parametrize(
    ("name", "message"),
    [("xlaa", r"no implementation 'xlaa'.*Did you mean 'xla'\?"), ("auto", "'auto' is for `choose`")],
)
def test_a_call_takes_the_name_of_an_implementation_and_nothing_else(name, message):
    args = arg_specs.make_decode(arg_specs.DECODE["multi_head"], seed=1)
    with pytest.raises(ConfigError, match=message):
        decode(*args.values(), scale=1.0, implementation=name)


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
    shape = Shape(kv_lens=(3, 3), groups=2)
    args = arg_specs.make_decode(shape, seed=1) | {name: jnp.asarray(value)}
    with pytest.raises(ValueError, match=message):
        decode(*args.values(), **shape.options)


def test_scales_that_do_not_fit_the_pages_are_refused():
    shape = Shape(kv_lens=(3, 3))
    args = arg_specs.make_decode(shape, seed=1)
    with pytest.raises(ValueError, match=r"kv_scales is \[P, p, K, 2\] of pages"):
        decode(*map(jnp.asarray, args.values()), **shape.options, kv_scales=jnp.ones(3))
