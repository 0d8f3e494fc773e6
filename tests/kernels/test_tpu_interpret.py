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
from kernels.pallas.paged_attention import api, arg_specs, reference, tpu
from kernels.pallas.paged_attention.arg_specs import Shape
from kernels.pallas.paged_attention.tpu_tuning import Blocks
from nanoserve.specs.errors import ConfigError

F32_TOLERANCE = 2e-6
BF16_TOLERANCE = 2e-2  # results of order 1, rounded to 8 bits

STATIC = ("scale", "window", "soft_cap", "blocks", "interpret")
KERNELS = {
    "decode": jax.jit(tpu.decode_attention, static_argnames=STATIC),
    "prefill": jax.jit(tpu.prefill_attention, static_argnames=STATIC),
}
TWO_CORES = compat.tpu_interpreter(detect_races=True, cores=2)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def make(kind: str, shape: Shape, seed: int, **options) -> dict[str, np.ndarray]:
    return getattr(arg_specs, f"make_{kind}")(shape, seed, **options)


def run(kind: str, shape: Shape, args: dict[str, np.ndarray], interpret=TWO_CORES, kv_scales=None, **sizes):
    """The kernel's answer, after a check that nothing raced; small blocks, so that there are several."""
    tile_tokens = 1 if kind == "decode" else 8 if sum(shape.q_lens) < 100 else 64
    blocks = Blocks(**{"block_pages": 2, "tile_tokens": tile_tokens, "cores": 2} | sizes)
    scales = {} if kv_scales is None else {"kv_scales": kv_scales}
    got = KERNELS[kind](*args.values(), **shape.options, **scales, blocks=blocks, interpret=interpret)
    assert got.dtype == jnp.dtype(shape.dtype)
    got = np.asarray(got, np.float64)
    assert interpret is True or not compat.tpu_races_found()
    return got


def check(kind: str, shape: Shape, args: dict[str, np.ndarray], **options) -> None:
    want = getattr(reference, f"{kind}_attention")(*args.values(), **shape.options)
    tolerance = BF16_TOLERANCE if shape.dtype == "bfloat16" else F32_TOLERANCE
    np.testing.assert_allclose(run(kind, shape, args, **options), want, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", arg_specs.DECODE)
def test_decode_matches_the_oracle_on_a_poisoned_pool(name):
    shape = arg_specs.DECODE[name]
    check("decode", shape, make("decode", shape, seed=1))


@pytest.mark.parametrize("name", arg_specs.PREFILL)
def test_prefill_matches_the_oracle_on_a_poisoned_pool(name):
    shape = arg_specs.PREFILL[name]
    check("prefill", shape, make("prefill", shape, seed=2))


BF16 = Shape(kv_lens=(70, 5), q_lens=(9, 5), kv_heads=1, groups=2, dtype="bfloat16", kv_dtype="bfloat16")


PACKED = {
    "decode": dataclasses.replace(BF16, head_size=128, kv_heads=3),
    "prefill": dataclasses.replace(BF16, head_size=256, window=20),
}


@pytest.mark.parametrize("kind", PACKED)
def test_keys_and_values_read_as_packed_words_match_the_oracle(kind):
    """The load that chips run and that the strict interpreter lacks; this one ignores copies and races."""
    shape = PACKED[kind]
    check(kind, shape, make(kind, shape, seed=3), interpret=True)


@pytest.mark.parametrize(("kind", "dtype"), [("decode", "int8"), ("decode", "float8_e4m3fn"), ("prefill", "int8")])
def test_8_bit_pages_and_their_scales_match_the_oracle(kind, dtype):
    shape = Shape(kv_lens=(0, 70, 5), q_lens=(0, 9, 5), groups=2)
    args = make(kind, shape, seed=3)
    args["kv_pages"], kv_scales = arg_specs.quantised(args["kv_pages"], dtype)
    want = getattr(reference, f"{kind}_attention")(*args.values(), **shape.options, kv_scales=kv_scales)
    got = run(kind, shape, args, kv_scales=kv_scales)
    np.testing.assert_allclose(got, want, atol=F32_TOLERANCE, rtol=0)


def test_the_poison_reaches_the_result_when_a_length_is_wrong():
    """The NaN tests above can fail: one position too many and the result is NaN."""
    shape = arg_specs.DECODE["edges_page_16"]
    args = make("decode", shape, seed=1) | {"kv_lens": np.array([0, 2, 16, 16, 18], np.int32)}
    assert np.isnan(run("decode", shape, args)).any(axis=(1, 2)).tolist() == [False, True, True, False, True]


def test_a_full_page_table_is_not_read_past_its_end():
    """The interpreter raises where a page more than there are is asked for."""
    shape = Shape(kv_lens=(48, 48), groups=2)
    args = make("decode", shape, seed=1)
    check("decode", shape, args | {"page_table": args["page_table"][:, :3]})


SMALL: dict[str, Any] = {"page_tokens": 4, "head_size": 8, "kv_heads": 1, "groups": 3}
lengths = st.lists(st.integers(0, 40), min_size=3, max_size=3)


@hypothesis.given(lengths=lengths, seed=st.integers(0, 99))
@hypothesis.settings(max_examples=6, deadline=None)
def test_decode_of_any_lengths_matches_the_oracle(lengths, seed):
    shape = Shape(kv_lens=tuple(lengths), window=9, **SMALL)
    check("decode", shape, padded(make("decode", shape, seed)))


chunks = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), min_size=3, max_size=3)


@hypothesis.given(chunks=chunks, seed=st.integers(0, 99))
@hypothesis.settings(max_examples=6, deadline=None)
def test_prefill_of_any_chunks_matches_the_oracle(chunks, seed):
    kv_lens = tuple(past + new if new else 0 for past, new in chunks)
    shape = Shape(kv_lens=kv_lens, q_lens=tuple(new for _, new in chunks), **SMALL)
    check("prefill", shape, padded(make("prefill", shape, seed)))


def padded(args: dict[str, np.ndarray], pages: int = 36, table_pages: int = 12, tokens: int = 40):
    """The same case with more pool, table and padding tokens, so that every example has one shape and compiles once."""
    kv_pages, table, q = args["kv_pages"], args["page_table"], args["q"]
    args["kv_pages"] = np.pad(kv_pages, ((0, pages - len(kv_pages)), *[(0, 0)] * 4), constant_values=np.nan)
    args["page_table"] = np.pad(table, ((0, 0), (0, table_pages - table.shape[1])), constant_values=-1)
    if "cu_q_lens" in args:
        args["q"] = np.pad(q, ((0, tokens - len(q)), (0, 0), (0, 0)), constant_values=np.nan)
    return args


NEIGHBOURS = Shape(kv_lens=(40, 17, 33), q_lens=(6, 9, 3), kv_heads=1, groups=2, head_size=32)


@pytest.mark.parametrize("kind", KERNELS)
def test_a_row_has_the_same_bits_beside_a_sequence_of_nan(kind):
    """A tile of prefill holds queries of several rows, whose weights for each other's values are 0: 0 x NaN is NaN."""
    args = make(kind, NEIGHBOURS, seed=4)
    want = run(kind, NEIGHBOURS, args)
    assert np.isfinite(want).all()
    kv_pages = args["kv_pages"].copy()
    kv_pages[args["page_table"][1, :2]] = np.nan
    got = run(kind, NEIGHBOURS, args | {"kv_pages": kv_pages})
    healthy = [0, 2] if kind == "decode" else [*range(6), *range(15, 18)]
    np.testing.assert_array_equal(got[healthy], want[healthy])
    assert np.isnan(got[1 if kind == "decode" else 6]).all()


@pytest.mark.parametrize("kind", KERNELS)
def test_a_row_has_the_same_bits_when_its_neighbours_are_gone(kind):
    args = make(kind, NEIGHBOURS, seed=5)
    together = run(kind, NEIGHBOURS, args)
    assert np.isfinite(together).all()
    alone = args | {"kv_lens": np.array([0, 17, 0], np.int32)}
    if kind == "prefill":
        alone |= {"cu_q_lens": np.array([0, 0, 9, 9], np.int32), "q": np.roll(args["q"], -6, axis=0)}
    got = run(kind, NEIGHBOURS, alone)
    if kind == "decode":
        np.testing.assert_array_equal(got[1], together[1])
        assert not got[[0, 2]].any()
    else:
        np.testing.assert_array_equal(got[:9], together[6:15])
        assert not got[9:].any()


@pytest.mark.parametrize("kind", KERNELS)
def test_renaming_pages_changes_no_bit(kind):
    args = make(kind, NEIGHBOURS, seed=6)
    pages = len(args["kv_pages"])
    order = np.random.default_rng(7).permutation(pages)
    renamed = args | {"kv_pages": np.empty_like(args["kv_pages"]), "page_table": args["page_table"].copy()}
    renamed["kv_pages"][order] = args["kv_pages"]
    inside = (args["page_table"] >= 0) & (args["page_table"] < pages)
    renamed["page_table"][inside] = order[args["page_table"][inside]]
    want = run(kind, NEIGHBOURS, args)
    assert np.isfinite(want).all()
    np.testing.assert_array_equal(run(kind, NEIGHBOURS, renamed), want)


def test_one_core_gives_the_bits_of_two():
    args = make("prefill", NEIGHBOURS, seed=8)
    one_core = compat.tpu_interpreter(detect_races=True)
    want = run("prefill", NEIGHBOURS, args)
    assert np.isfinite(want).all()
    np.testing.assert_array_equal(run("prefill", NEIGHBOURS, args, interpret=one_core, cores=1), want)


@pytest.mark.parametrize("kind", KERNELS)
def test_the_contract_reaches_the_kernel_with_its_own_block_sizes(kind):
    shape = NEIGHBOURS
    args = make(kind, shape, seed=9)
    got = getattr(api, f"{kind}_attention")(*args.values(), **shape.options, implementation="pallas_tpu_interpret")
    want = getattr(reference, f"{kind}_attention")(*args.values(), **shape.options)
    np.testing.assert_allclose(got, want, atol=F32_TOLERANCE, rtol=0)


def test_without_a_tpu_the_kernel_is_refused_and_not_replaced():
    args = make("decode", NEIGHBOURS, seed=9)
    with pytest.raises(ValueError, match="interpret mode"):
        api.decode_attention(*map(jnp.asarray, args.values()), **NEIGHBOURS.options, implementation="pallas_tpu")


def test_elements_and_page_tables_that_the_kernel_cannot_take_are_refused_with_the_reason():
    shape = dataclasses.replace(NEIGHBOURS, kv_dtype="float16")
    with pytest.raises(ConfigError, match=r"takes pages of bfloat16, .*, not float16"):
        run("decode", shape, make("decode", shape, seed=9))
    shape = dataclasses.replace(NEIGHBOURS, head_size=192)
    with pytest.raises(ConfigError, match="heads of up to 128 or a multiple of it, not 192"):
        run("decode", shape, make("decode", shape, seed=9))
    with pytest.raises(ConfigError, match="scales go with 8-bit pages, not with pages of float32"):
        run("decode", NEIGHBOURS, make("decode", NEIGHBOURS, seed=9), kv_scales=np.ones(3, np.float32))
    args = make("decode", NEIGHBOURS, seed=9) | {"page_table": np.zeros((3, 100_000), np.int32)}
    with pytest.raises(ConfigError, match="scalar memory holds 1048576"):
        run("decode", NEIGHBOURS, args)
