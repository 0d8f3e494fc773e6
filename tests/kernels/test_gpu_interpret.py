"""The GPU kernels, run on a CPU by an interpreter that watches for races between warpgroups and the TMA."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas import compat
from kernels.pallas.paged_attention import api, arg_specs, gpu, reference
from kernels.pallas.paged_attention.arg_specs import Shape
from kernels.pallas.paged_attention.gpu_tuning import Blocks
from nanoserve.specs.errors import ConfigError

BF16_TOLERANCE = 2e-2  # results of order 1, rounded to 8 bits
SPLIT_TOLERANCE = 1e-2  # one rounding to bfloat16 of results of order 1

KERNELS = {"decode": gpu.decode_attention, "prefill": gpu.prefill_attention}
RACES = compat.gpu_interpreter(detect_races=True)
SMALL = Blocks(stages=2, splits=2, thread_blocks=2)  # two of everything: slots are used again, and so are blocks

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # of the rows that pad a tile


pytestmark = pytest.mark.usefixtures("quick_compilation")


def bf16(**fields) -> Shape:
    return Shape(dtype="bfloat16", kv_dtype="bfloat16", **fields)


def make(kind: str, shape: Shape, seed: int) -> dict[str, np.ndarray]:
    return getattr(arg_specs, f"make_{kind}")(shape, seed)


def quantised(kind: str, shape: Shape, seed: int, dtype: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arguments with pages of 8 bits, and their scales."""
    args = make(kind, dataclasses.replace(shape, kv_dtype="float32"), seed)
    args["kv_pages"], kv_scales = arg_specs.quantised(args["kv_pages"], dtype)
    return args, kv_scales


def run(kind: str, shape: Shape, args: dict[str, np.ndarray], blocks: Blocks = SMALL, **options) -> np.ndarray:
    """The kernel's answer, after a check that nothing raced."""
    got = KERNELS[kind](*args.values(), **shape.options, **options, blocks=blocks, interpret=RACES)
    assert got.dtype == jnp.dtype(shape.dtype)
    got = np.asarray(got, np.float64)
    assert not compat.gpu_races_found()
    return got


def check(kind: str, shape: Shape, seed: int, blocks: Blocks = SMALL) -> None:
    args = make(kind, shape, seed)
    want = getattr(reference, f"{kind}_attention")(*args.values(), **shape.options)
    np.testing.assert_allclose(run(kind, shape, args, blocks), want, atol=BF16_TOLERANCE, rtol=0)


DECODE = {
    "edges_page_32": (bf16(kv_lens=(0, 1, 31, 32, 33), groups=4, page_tokens=32), SMALL),
    "edges_page_16_group_3": (bf16(kv_lens=(0, 1, 15, 16, 17), groups=3, kv_heads=1), SMALL),
    "more_blocks_than_slots": (bf16(kv_lens=(330, 5), groups=1, kv_heads=2, page_tokens=64), SMALL),
    "page_128_larger_than_a_block": (bf16(kv_lens=(129, 200), groups=2, kv_heads=1, page_tokens=128), SMALL),
    "block_128_head_128_group_16": (
        bf16(kv_lens=(150, 33), groups=16, kv_heads=1, head_size=128, page_tokens=64),
        dataclasses.replace(SMALL, block_tokens=128),
    ),
    "head_96": (bf16(kv_lens=(70, 18), groups=2, kv_heads=1, head_size=96), SMALL),
    "window_soft_cap": (bf16(kv_lens=(0, 20, 150), groups=2, kv_heads=1, window=20, soft_cap=2.0), SMALL),
    "all_padding": (bf16(kv_lens=(0, 0), groups=2, kv_heads=1), SMALL),
}

PREFILL = {
    "chunks_and_padding_rows": (bf16(kv_lens=(16, 40, 0, 5), q_lens=(16, 7, 0, 5), groups=2, kv_heads=1), SMALL),
    "whole_and_partial_tiles": (bf16(kv_lens=(200, 65), q_lens=(140, 65), groups=1, kv_heads=1, page_tokens=64), SMALL),
    "group_3_head_128": (
        bf16(kv_lens=(33, 150), q_lens=(3, 9), groups=3, kv_heads=2, head_size=128, page_tokens=32),
        dataclasses.replace(SMALL, block_tokens=128),
    ),
    "head_96": (bf16(kv_lens=(80, 9), q_lens=(69, 9), groups=1, kv_heads=1, head_size=96), SMALL),
    "head_256_in_parts": (bf16(kv_lens=(70, 9), q_lens=(66, 3), groups=1, kv_heads=1, head_size=256), SMALL),
    "window_soft_cap": (
        bf16(kv_lens=(230, 30), q_lens=(100, 30), groups=1, kv_heads=1, window=20, soft_cap=2.0),
        SMALL,
    ),
}


@pytest.mark.parametrize("name", DECODE)
def test_decode_matches_the_oracle_on_a_poisoned_pool_without_races(name):
    check("decode", DECODE[name][0], seed=1, blocks=DECODE[name][1])


@pytest.mark.parametrize("name", PREFILL)
def test_prefill_matches_the_oracle_on_a_poisoned_pool_without_races(name):
    check("prefill", PREFILL[name][0], seed=2, blocks=PREFILL[name][1])


QUANTISED = {
    "decode-int8_head_128": (
        bf16(kv_lens=(0, 1, 31, 130), groups=2, kv_heads=1, page_tokens=32, head_size=128),
        "int8",
    ),
    "decode-fp8_window_soft_cap": (
        bf16(kv_lens=(0, 20, 150), groups=3, kv_heads=2, window=20, soft_cap=2.0),
        "float8_e4m3fn",
    ),
    "prefill-int8": (bf16(kv_lens=(16, 150, 0, 5), q_lens=(16, 7, 0, 5), groups=2, kv_heads=1), "int8"),
    "prefill-fp8_window_soft_cap": (
        bf16(kv_lens=(230, 30), q_lens=(100, 30), groups=1, kv_heads=1, head_size=96, window=20, soft_cap=2.0),
        "float8_e4m3fn",
    ),
    "prefill-int8_head_256": (bf16(kv_lens=(70, 9), q_lens=(66, 3), groups=1, kv_heads=1, head_size=256), "int8"),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_pages_of_8_bits_match_the_oracle_on_a_poisoned_pool_without_races(name):
    kind, (shape, dtype) = name.split("-")[0], QUANTISED[name]
    args, kv_scales = quantised(kind, shape, 8, dtype)
    want = getattr(reference, f"{kind}_attention")(*args.values(), **shape.options, kv_scales=kv_scales)
    got = run(kind, shape, args, kv_scales=kv_scales)
    np.testing.assert_allclose(got, want, atol=BF16_TOLERANCE, rtol=0)


def test_the_poison_reaches_the_result_when_a_length_is_wrong():
    """The NaN tests above can fail: one position too many and the result is NaN."""
    shape = DECODE["edges_page_16_group_3"][0]
    args = make("decode", shape, seed=1) | {"kv_lens": np.array([0, 2, 16, 16, 18], np.int32)}
    assert np.isnan(run("decode", shape, args)).any(axis=(1, 2)).tolist() == [False, True, True, False, True]


NEIGHBOURS = bf16(kv_lens=(40, 17, 70), q_lens=(6, 9, 3), kv_heads=1, groups=2)


@pytest.mark.parametrize("splits", [1, 5])
def test_the_number_of_splits_changes_only_the_rounding(splits):
    shape = DECODE["more_blocks_than_slots"][0]
    args = make("decode", shape, seed=3)
    got = run("decode", shape, args, dataclasses.replace(SMALL, splits=splits))
    np.testing.assert_allclose(got, run("decode", shape, args), atol=SPLIT_TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KERNELS)
def test_a_row_has_the_same_bits_when_its_neighbours_are_gone(kind):
    args = make(kind, NEIGHBOURS, seed=5)
    together = run(kind, NEIGHBOURS, args)
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
    np.testing.assert_array_equal(run(kind, NEIGHBOURS, renamed), run(kind, NEIGHBOURS, args))


def test_the_contract_reaches_the_kernel_with_its_own_block_sizes():
    args = make("decode", NEIGHBOURS, seed=9)
    got = api.decode_attention(*args.values(), **NEIGHBOURS.options, implementation="pallas_gpu_interpret")
    want = reference.decode_attention(*args.values(), **NEIGHBOURS.options)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=BF16_TOLERANCE, rtol=0)


def test_without_a_gpu_the_kernel_is_refused_and_not_replaced():
    args = make("decode", NEIGHBOURS, seed=9)
    with pytest.raises(ValueError, match="interpret mode"):
        api.decode_attention(*args.values(), **NEIGHBOURS.options, implementation="pallas_gpu")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("decode", {"dtype": "float32", "kv_dtype": "float32"}, "queries of bfloat16 or float16 with .*, not float32"),
        ("decode", {"kv_dtype": "float16"}, "not bfloat16 and float16: choose the implementation 'xla'"),
        ("decode", {"kv_dtype": "float8_e4m3fn"}, "take scales with pages of 8 bits"),
        (
            "prefill",
            {"head_size": 80},
            r"have head sizes \(64, 96, 128, 256\), not 80: choose the implementation 'xla'",
        ),
        ("decode", {"groups": 65}, "share a KV head among 64 queries, not 65"),
        ("decode", {"page_tokens": 4}, "take pages of 8, 16, 32, 64, ... tokens, not 4"),
    ],
)
def test_what_the_kernel_does_not_serve_is_refused_with_the_reason(kind, changes, message):
    shape = dataclasses.replace(NEIGHBOURS, **changes)
    with pytest.raises(ConfigError, match=message):
        KERNELS[kind](*make(kind, shape, seed=9).values(), **shape.options)
