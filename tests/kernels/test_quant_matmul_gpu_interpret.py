"""The GPU kernel for quantised weights, run on a CPU by an interpreter that watches for races.

Here with one consumer, and with two in a process of its own: see `kernels.pallas.quant_matmul.gpu_interpret`.
"""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas import compat
from kernels.pallas.quant_matmul import api, arg_specs, gpu, reference
from kernels.pallas.quant_matmul.gpu_tuning import Blocks, blocks
from tests.kernels import quant_matmul_two_consumers as two_consumers
from tests.kernels.quant_matmul_two_consumers import ROUNDING, SUMS, arguments, run

SERVED = [name for name, shape in arg_specs.SMALL.items() if not gpu.why_not(*arg_specs.multiplied(shape)[:2])]
SMALL = Blocks(tile_tokens=8, stages=2, consumers=1)
SPLIT = dataclasses.replace(SMALL, splits=2)

PROCESS_SECONDS = 120  # a deadlock is an error, not a wait without end


pytestmark = pytest.mark.usefixtures("quick_compilation")


def check(shape: arg_specs.Shape, seed: int, blocks: Blocks) -> None:
    values, weight, row_scales = args = arguments(shape, seed)
    want = reference.matmul(values, weight.values, weight.scales, row_scales)
    np.testing.assert_allclose(run(shape, args, blocks), want, rtol=ROUNDING[shape.dtype], atol=SUMS)


@pytest.mark.parametrize("name", SERVED)
def test_it_matches_the_oracle_without_races(name):
    """Tokens are no multiple of a tile, and most have several tiles."""
    check(dataclasses.replace(arg_specs.SMALL[name], outputs=64), seed=1, blocks=SMALL)


@pytest.mark.parametrize("name", ["int4_group_32_f32_scales", "fp8_rows"])
def test_splits_that_do_not_divide_the_inputs_match_the_oracle(name):
    """The longer split has more blocks than there are slots."""
    shape = dataclasses.replace(arg_specs.SMALL[name], inputs=640, outputs=64)
    check(shape, seed=2, blocks=SPLIT)


def test_a_tile_of_128_tokens_matches_the_oracle():
    check(
        arg_specs.Shape(tokens=70, outputs=64, scheme="int4"),
        seed=3,
        blocks=Blocks(tile_tokens=128, stages=2, consumers=1),
    )


def test_a_row_has_the_same_bits_beside_rows_of_nan():
    shape = arg_specs.Shape(tokens=5, outputs=64, scheme="int4", group=32)
    x_TD, weight, _ = arguments(shape, seed=5)
    want = run(shape, (x_TD, weight, None), SMALL)
    got = run(shape, (x_TD.at[1].set(np.nan), weight, None), SMALL)
    assert np.isnan(got[1]).all()
    np.testing.assert_array_equal(got[[0, 2, 3, 4]], want[[0, 2, 3, 4]])


def test_two_consumers_share_a_ring_without_races():
    """Three warpgroups want three threads of XLA's pool, which a machine of two cores has only if it is told to."""
    process = subprocess.run(
        [sys.executable, "-m", two_consumers.__name__],
        env=os.environ | {"NPROC": "8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PROCESS_SECONDS,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    outcomes = [json.loads(line) for line in process.stdout.splitlines()]
    assert [outcome["case"] for outcome in outcomes] == [*two_consumers.CASES]
    assert [outcome["wrong"] for outcome in outcomes] == [0] * len(outcomes)


def test_the_contract_reaches_the_kernel_with_its_own_block_sizes():
    shape = arg_specs.SMALL["fp8_rows"]
    x_TD, weight = arg_specs.make(shape, seed=6)
    got = api.fp8_matmul(x_TD, weight, implementation="pallas_gpu_interpret")
    want = api.fp8_matmul(x_TD, weight, implementation="xla")
    np.testing.assert_allclose(
        np.asarray(got, np.float64), np.asarray(want, np.float64), rtol=2 * ROUNDING["bfloat16"], atol=SUMS
    )


def test_without_a_gpu_the_kernel_is_refused_and_not_replaced():
    with pytest.raises(ValueError, match="interpret mode"):
        api.quant_matmul(*arg_specs.make(arg_specs.SMALL["int8_one_token"], seed=7), implementation="pallas_gpu")


@pytest.mark.parametrize("name", arg_specs.COMPILED)
def test_block_sizes_fit_the_product(name):
    x_TD, weight, _ = arg_specs.multiplied(arg_specs.COMPILED[name])
    sizes = blocks(x_TD, weight)
    assert sizes.stages >= 2
    assert sizes.tile_tokens in (8, 16, 24, 32, 40, 48, 56, 64, 128)
    assert 1 <= sizes.splits <= weight.inputs // 128
    assert weight.outputs % (64 * sizes.consumers) == 0


def test_few_tiles_are_split_and_sums_that_would_outweigh_the_weight_are_not():
    decode, wide = arg_specs.layer("llama8b_o", 8), arg_specs.layer("llama8b_gate_up", 128, "int4")
    assert blocks(*arg_specs.abstract(decode)).splits >= 4
    assert blocks(*arg_specs.abstract(wide)).splits == 1


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_layer_of_a_stack_has_the_bits_of_that_layer_alone(scheme):
    shape = arg_specs.Shape(tokens=5, outputs=128, scheme=scheme)
    x_TD, weight = arg_specs.make(shape, seed=7)
    other = arg_specs.make(shape, seed=8)[1]
    stack = jax.tree.map(lambda *layers: jnp.stack(layers), other, weight, other)
    options = {"out_dtype": shape.dtype, "blocks": SMALL, "interpret": compat.gpu_interpreter()}
    found = gpu.matmul(x_TD, stack, layer=jnp.int32(1), **options)
    np.testing.assert_array_equal(found, gpu.matmul(x_TD, weight, **options))
