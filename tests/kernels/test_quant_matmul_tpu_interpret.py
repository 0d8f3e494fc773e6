"""The TPU kernel for quantised weights, run on a CPU by an interpreter that delays copies and watches for races."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas import compat
from kernels.pallas.quant_matmul import api, arg_specs, reference, tpu
from kernels.pallas.quant_matmul.quantise import quantise_rows
from kernels.pallas.quant_matmul.tpu_tuning import Blocks

ROUNDING = {"bfloat16": 2**-8, "float32": 1e-6}  # of a result, relative
SUMS = 1e-5  # float32 sums of products that add up to 1 or so, in any order

SERVED = [name for name, shape in arg_specs.SMALL.items() if not tpu.why_not(*arg_specs.multiplied(shape)[:2])]
SEVERAL = Blocks(tile_tokens=16, tile_outputs=128, chunk=128, cores=2)  # of everything


pytestmark = pytest.mark.usefixtures("quick_compilation")


def arguments(shape: arg_specs.Shape, seed: int):
    x_TD, weight = arg_specs.make(shape, seed)
    values, row_scales = (x_TD, None) if shape.rows is None else quantise_rows(x_TD, shape.rows)
    return values, weight, row_scales


def run(shape: arg_specs.Shape, args, blocks: Blocks | None = None, cores: int = 1) -> np.ndarray:
    """The kernel's answer, after a check that nothing raced."""
    interpret = compat.tpu_interpreter(detect_races=True, cores=cores)
    got = tpu.matmul(*args, out_dtype=shape.dtype, blocks=blocks, interpret=interpret)
    assert got.dtype == shape.dtype
    assert got.shape == (shape.tokens, shape.outputs)
    got = np.asarray(got, np.float64)
    assert not compat.tpu_races_found()
    return got


def check(shape: arg_specs.Shape, seed: int, **options) -> None:
    values, weight, row_scales = args = arguments(shape, seed)
    want = reference.matmul(values, weight.values, weight.scales, row_scales)
    np.testing.assert_allclose(run(shape, args, **options), want, rtol=ROUNDING[shape.dtype], atol=SUMS)


@pytest.mark.parametrize("name", SERVED)
def test_it_matches_the_oracle_without_races(name):
    check(arg_specs.SMALL[name], seed=1)


SEVERAL_TILES = {
    "int8": arg_specs.Shape(tokens=37, outputs=384),
    "int8_float32": arg_specs.Shape(tokens=5, outputs=200, dtype="float32"),
    "int4_group_64": arg_specs.Shape(tokens=20, outputs=384, scheme="int4", group=64),
    "int8_rows": arg_specs.Shape(tokens=33, outputs=200, rows="int8"),
}


@pytest.mark.parametrize("name", SEVERAL_TILES)
def test_tiles_of_rows_and_channels_that_divide_nothing_match_the_oracle_on_two_cores(name):
    """Neither tokens nor outputs are multiples of a tile, nor tiles of cores."""
    check(SEVERAL_TILES[name], seed=2, blocks=SEVERAL, cores=2)


@pytest.mark.parametrize("shape", [arg_specs.Shape(tokens=5), arg_specs.Shape(tokens=5, scheme="int4", group=32)])
def test_a_row_has_the_same_bits_beside_rows_of_nan(shape):
    x_TD, weight, _ = arguments(shape, seed=3)
    want = run(shape, (x_TD, weight, None))
    got = run(shape, (x_TD.at[1].set(np.nan), weight, None))
    assert np.isnan(got[1]).all()
    np.testing.assert_array_equal(got[[0, 2, 3, 4]], want[[0, 2, 3, 4]])


def test_one_core_gives_the_bits_of_two():
    shape = SEVERAL_TILES["int4_group_64"]
    args = arguments(shape, seed=4)
    one_core = Blocks(tile_tokens=16, tile_outputs=128, chunk=128)
    np.testing.assert_array_equal(run(shape, args, one_core), run(shape, args, SEVERAL, cores=2))


def test_the_contract_reaches_the_kernel_with_its_own_block_sizes():
    shape = arg_specs.SMALL["int4_int8_rows"]
    x_TD, weight = arg_specs.make(shape, seed=5)
    got = api.int8_matmul(x_TD, weight, implementation="pallas_tpu_interpret")
    want = api.int8_matmul(x_TD, weight, implementation="xla")
    np.testing.assert_allclose(
        np.asarray(got, np.float64), np.asarray(want, np.float64), rtol=2 * ROUNDING["bfloat16"], atol=SUMS
    )


def test_without_a_tpu_the_kernel_is_refused_and_not_replaced():
    with pytest.raises(ValueError, match="interpret mode"):
        api.quant_matmul(*arg_specs.make(arg_specs.SMALL["int8_one_token"], seed=6), implementation="pallas_tpu")


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("int8_per_channel", 5 * 256 * 2 + 256 * 256 + 256 * 4 + 5 * 256 * 2),
        ("int4_group_128", 5 * 256 * 2 + 256 * 256 // 2 + 2 * 256 * 2 + 5 * 256 * 2),
        ("int8_rows", 5 * 256 + 256 * 256 + 256 * 4 + 5 * 256 * 2 + 5 * 4),
    ],
)
def test_the_declared_cost_is_two_flops_a_weight_and_token_and_every_array_once(name, stored):
    shape = arg_specs.SMALL[name]
    cost = tpu.cost(*arg_specs.multiplied(shape), shape.dtype)
    assert cost.flops == 2 * shape.tokens * shape.inputs * shape.outputs
    assert cost.bytes_accessed == stored


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_layer_of_a_stack_has_the_bits_of_that_layer_alone(scheme):
    shape = arg_specs.Shape(tokens=5, outputs=128, scheme=scheme)
    x_TD, weight = arg_specs.make(shape, seed=7)
    other = arg_specs.make(shape, seed=8)[1]
    stack = jax.tree.map(lambda *layers: jnp.stack(layers), other, weight, other)
    options = {"out_dtype": shape.dtype, "interpret": compat.tpu_interpreter()}
    found = tpu.matmul(x_TD, stack, layer=jnp.int32(1), **options)
    np.testing.assert_array_equal(found, tpu.matmul(x_TD, weight, **options))
