"""The TPU kernel, run on a CPU by an interpreter that delays copies until they are waited for and watches for races."""

import dataclasses
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas import compat
from kernels.pallas.paged_attention import arg_specs, tpu
from kernels.pallas.paged_attention.arg_specs import Shape
from kernels.pallas.paged_attention.tpu_tuning import Blocks
from tests.kernels import promises
from tests.kernels.promises import KINDS, Arguments, Case, called, of_kind

STATIC = ("scale", "window", "soft_cap", "blocks", "interpret")
KERNELS = {
    "decode": jax.jit(tpu.decode_attention, static_argnames=STATIC),
    "prefill": jax.jit(tpu.prefill_attention, static_argnames=STATIC),
}
TWO_CORES = compat.tpu_interpreter(detect_races=True, cores=2)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def run(case: Case, args: Arguments, interpret=TWO_CORES, cores: int = 2, **options) -> np.ndarray:
    """The kernel's answer, after a check that nothing raced; small blocks, so that there are several."""
    tile_tokens = 1 if case.kind == "decode" else 8 if sum(case.shape.q_lens) < 100 else 64
    blocks = Blocks(block_pages=2, tile_tokens=tile_tokens, cores=cores)
    options |= case.shape.options | {"blocks": blocks, "interpret": interpret}
    got = called(KERNELS[case.kind], args, **options)
    assert got.dtype == jnp.dtype(case.shape.dtype)
    got = np.asarray(got, np.float64)
    assert interpret is True or not compat.tpu_races_found()
    return got


def check(case: Case, args: Arguments, **options) -> None:
    np.testing.assert_allclose(run(case, args, **options), case.want(args), atol=case.tolerance, rtol=0)


NEIGHBOURS = Shape(kv_lens=(40, 17, 33), q_lens=(6, 9, 3), kv_heads=1, groups=2, head_size=32)
QUANTISED = Shape(kv_lens=(0, 70, 5), q_lens=(0, 9, 5), groups=2)

CASES = {
    **of_kind("decode", arg_specs.DECODE),
    **of_kind("prefill", arg_specs.PREFILL),
    **of_kind("decode", {"int8": QUANTISED}, quantised="int8"),
    **of_kind("decode", {"fp8": QUANTISED}, quantised="float8_e4m3fn"),
    **of_kind("prefill", {"int8": QUANTISED}, quantised="int8"),
}


class TestTpu(promises.KernelPromises):
    implementation = "pallas_tpu"
    run = staticmethod(run)
    cases = CASES
    edges = CASES["decode-edges_page_16"]
    neighbours = promises.second_row_of(NEIGHBOURS)
    by_name = tuple(Case(kind=kind, shape=NEIGHBOURS) for kind in KINDS)


BF16 = Shape(kv_lens=(70, 5), q_lens=(9, 5), kv_heads=1, groups=2, dtype="bfloat16", kv_dtype="bfloat16")
PACKED = {
    "decode": dataclasses.replace(BF16, head_size=128, kv_heads=3),
    "prefill": dataclasses.replace(BF16, head_size=256, window=20),
}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_read_as_packed_words_match_the_oracle(kind):
    """The load that chips run and that the strict interpreter lacks; this one ignores copies and races."""
    case = Case(kind=kind, shape=PACKED[kind])
    check(case, case.make(seed=3), interpret=True)


def test_a_full_page_table_is_not_read_past_its_end():
    """The interpreter raises where a page more than there are is asked for."""
    case = Case(kind="decode", shape=Shape(kv_lens=(48, 48), groups=2))
    args = case.make(seed=1)
    check(case, args | {"page_table": args["page_table"][:, :3]})


SMALL: dict[str, Any] = {"page_tokens": 4, "head_size": 8, "kv_heads": 1, "groups": 3}
PADDED = {"pages": 36, "table_pages": 12, "tokens": 40}
lengths = st.lists(st.integers(0, 40), min_size=3, max_size=3)


@hypothesis.given(lengths=lengths, seed=st.integers(0, 99))
@hypothesis.settings(max_examples=6)
def test_decode_of_any_lengths_matches_the_oracle(lengths, seed):
    case = Case(kind="decode", shape=Shape(kv_lens=tuple(lengths), window=9, **SMALL))
    check(case, promises.padded(case.make(seed), **PADDED))


chunks = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), min_size=3, max_size=3)


@hypothesis.given(chunks=chunks, seed=st.integers(0, 99))
@hypothesis.settings(max_examples=6)
def test_prefill_of_any_chunks_matches_the_oracle(chunks, seed):
    case = Case(kind="prefill", shape=promises.chunks_shape(chunks, **SMALL))
    check(case, promises.padded(case.make(seed), **PADDED))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_beside_a_sequence_of_nan(kind):
    """A tile of prefill holds queries of several rows, whose weights for each other's values are 0: 0 x NaN is NaN."""
    case = Case(kind=kind, shape=NEIGHBOURS)
    args = case.make(seed=4)
    want = run(case, args)
    assert np.isfinite(want).all()
    kv_pages = args["kv_pages"].copy()
    kv_pages[args["page_table"][1, :2]] = np.nan
    got = run(case, args | {"kv_pages": kv_pages})
    healthy = [0, 2] if kind == "decode" else [*range(6), *range(15, 18)]
    np.testing.assert_array_equal(got[healthy], want[healthy])
    assert np.isnan(got[1 if kind == "decode" else 6]).all()


def test_one_core_gives_the_bits_of_two():
    case = Case(kind="prefill", shape=NEIGHBOURS)
    args = case.make(seed=8)
    want = run(case, args)
    assert np.isfinite(want).all()
    one_core = compat.tpu_interpreter(detect_races=True)
    np.testing.assert_array_equal(run(case, args, interpret=one_core, cores=1), want)
