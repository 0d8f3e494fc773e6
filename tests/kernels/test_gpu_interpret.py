"""The GPU kernels, run on a CPU by an interpreter that watches for races between warpgroups and the TMA."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas import compat
from kernels.pallas.paged_attention import gpu
from kernels.pallas.paged_attention.arg_specs import Shape
from kernels.pallas.paged_attention.gpu_tuning import Blocks
from tests.kernels import promises
from tests.kernels.promises import Arguments, Case, called, of_kind

SPLIT_TOLERANCE = 1e-2  # one rounding to bfloat16 of results of order 1

KERNELS = {"decode": gpu.decode_attention, "prefill": gpu.prefill_attention}
RACES = compat.gpu_interpreter(detect_races=True)
SMALL = Blocks(stages=2, splits=2, thread_blocks=2)  # two of everything: slots are used again, and so are blocks

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in matmul"),  # of the rows that pad a tile
]


def bf16(**fields) -> Shape:
    return bf16_q(kv_dtype="bfloat16", **fields)


def bf16_q(**fields) -> Shape:
    """Pages are made in float32, to be quantised."""
    return Shape(dtype="bfloat16", **fields)


def run(case: Case, args: Arguments, **options) -> np.ndarray:
    """The kernel's answer, after a check that nothing raced."""
    options = case.shape.options | {"blocks": SMALL, "interpret": RACES} | dict(case.sizes) | options
    got = called(KERNELS[case.kind], args, **options)
    assert got.dtype == jnp.dtype(case.shape.dtype)
    got = np.asarray(got, np.float64)
    assert not compat.gpu_races_found()
    return got


BLOCK_128 = {"blocks": dataclasses.replace(SMALL, block_tokens=128)}

DECODE = {
    "edges_page_32": bf16(kv_lens=(0, 1, 31, 32, 33), groups=4, page_tokens=32),
    "edges_page_16_group_3": bf16(kv_lens=(0, 1, 15, 16, 17), groups=3, kv_heads=1),
    "more_blocks_than_slots": bf16(kv_lens=(330, 5), groups=1, kv_heads=2, page_tokens=64),
    "page_128_larger_than_a_block": bf16(kv_lens=(129, 200), groups=2, kv_heads=1, page_tokens=128),
    "head_96": bf16(kv_lens=(70, 18), groups=2, kv_heads=1, head_size=96),
    "window_soft_cap": bf16(kv_lens=(0, 20, 150), groups=2, kv_heads=1, window=20, soft_cap=2.0),
    "all_padding": bf16(kv_lens=(0, 0), groups=2, kv_heads=1),
}
DECODE_IN_BLOCKS_OF_128 = {
    "head_128_group_16": bf16(kv_lens=(150, 33), groups=16, kv_heads=1, head_size=128, page_tokens=64),
}
PREFILL = {
    "chunks_and_padding_rows": bf16(kv_lens=(16, 40, 0, 5), q_lens=(16, 7, 0, 5), groups=2, kv_heads=1),
    "whole_and_partial_tiles": bf16(kv_lens=(200, 65), q_lens=(140, 65), groups=1, kv_heads=1, page_tokens=64),
    "head_96": bf16(kv_lens=(80, 9), q_lens=(69, 9), groups=1, kv_heads=1, head_size=96),
    "head_256_in_parts": bf16(kv_lens=(70, 9), q_lens=(66, 3), groups=1, kv_heads=1, head_size=256),
    "head_256_window": bf16(kv_lens=(230,), q_lens=(70,), groups=1, kv_heads=1, head_size=256, window=20),
    "window_soft_cap": bf16(kv_lens=(230, 30), q_lens=(100, 30), groups=1, kv_heads=1, window=20, soft_cap=2.0),
}
PREFILL_IN_BLOCKS_OF_128 = {
    "head_128_group_3": bf16(kv_lens=(33, 150), q_lens=(3, 9), groups=3, kv_heads=2, head_size=128, page_tokens=32),
}
DECODE_INT8 = {"int8_head_128": bf16_q(kv_lens=(0, 1, 31, 130), groups=2, kv_heads=1, page_tokens=32, head_size=128)}
DECODE_FP8 = {"fp8_window_soft_cap": bf16_q(kv_lens=(0, 20, 150), groups=3, kv_heads=2, window=20, soft_cap=2.0)}
PREFILL_INT8 = {
    "int8": bf16_q(kv_lens=(16, 150, 0, 5), q_lens=(16, 7, 0, 5), groups=2, kv_heads=1),
    "int8_head_256": bf16_q(kv_lens=(70, 9), q_lens=(66, 3), groups=1, kv_heads=1, head_size=256),
}
PREFILL_FP8 = {
    "fp8_window_soft_cap": bf16_q(
        kv_lens=(230, 30), q_lens=(100, 30), groups=1, kv_heads=1, head_size=96, window=20, soft_cap=2.0
    ),
}

CASES = {
    **of_kind("decode", DECODE),
    **of_kind("decode", DECODE_IN_BLOCKS_OF_128, sizes=BLOCK_128),
    **of_kind("decode", DECODE_INT8, quantised="int8"),
    **of_kind("decode", DECODE_FP8, quantised="float8_e4m3fn"),
    **of_kind("prefill", PREFILL),
    **of_kind("prefill", PREFILL_IN_BLOCKS_OF_128, sizes=BLOCK_128),
    **of_kind("prefill", PREFILL_INT8, quantised="int8"),
    **of_kind("prefill", PREFILL_FP8, quantised="float8_e4m3fn"),
}

NEIGHBOURS = bf16(kv_lens=(40, 17, 70), q_lens=(6, 9, 3), kv_heads=1, groups=2)


class TestGpu(promises.KernelPromises):
    implementation = "pallas_gpu"
    run = staticmethod(run)
    cases = CASES
    edges = CASES["decode-edges_page_16_group_3"]
    neighbours = promises.second_row_of(NEIGHBOURS)
    by_name = (Case(kind="decode", shape=NEIGHBOURS),)


@pytest.mark.parametrize("splits", [1, 5, 20])
def test_the_number_of_splits_changes_only_the_rounding(splits):
    case = Case(kind="decode", shape=DECODE["more_blocks_than_slots"])
    args = case.make(seed=3)
    got = run(case, args, blocks=dataclasses.replace(SMALL, splits=splits))
    np.testing.assert_allclose(got, run(case, args), atol=SPLIT_TOLERANCE, rtol=0)
