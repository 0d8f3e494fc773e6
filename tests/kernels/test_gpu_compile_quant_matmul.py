"""Every variant of the GPU kernel for quantised weights is accepted by the compiler for Hopper, without a GPU."""

import jax
import jax.numpy as jnp
import pytest

from kernels.pallas import aot_gpu
from kernels.pallas.quant_matmul import arg_specs, gpu
from kernels.pallas.quant_matmul.gpu_tuning import Blocks
from kernels.pallas.quant_matmul.weight import stored_bytes

pytestmark = pytest.mark.skipif(not aot_gpu.available(), reason="needs the compiler for GPUs: run `make aot-gpu`")

MOST_SHARED_BYTES = 227 * 1024  # of a thread block on Hopper
SERVED = [name for name, shape in arg_specs.COMPILED.items() if not gpu.why_not(*arg_specs.multiplied(shape)[:2])]


def compile_case(shape: arg_specs.Shape, layers: int = 1, blocks: Blocks | None = None):
    """The product by each of `layers` weights of one shape, added up."""
    rows, weight, row_scales = arg_specs.multiplied(shape)
    leaves, tree = jax.tree.flatten((rows, [weight] * layers, row_scales))

    def products(*leaves):
        rows, weights, row_scales = jax.tree.unflatten(tree, leaves)
        return sum(gpu.matmul(rows, w, row_scales, out_dtype=shape.dtype, blocks=blocks) for w in weights)

    return aot_gpu.compiled_for_h100(products, *leaves)


@pytest.mark.parametrize("name", SERVED)
def test_the_compiler_takes_it_without_spills_or_waits_between_products(name):
    _, report = compile_case(arg_specs.COMPILED[name])
    assert report.kernels == 1
    assert report.spill_bytes == 0
    assert not report.wgmma_serialised
    assert 0 < report.shared_bytes <= MOST_SHARED_BYTES


@pytest.mark.parametrize("consumers", [1, 2])
def test_splits_of_many_small_groups_do_not_spill(consumers):
    shape = arg_specs.COMPILED["int4_group_32_f32_scales"]
    _, report = compile_case(shape, blocks=Blocks(tile_tokens=128, stages=4, splits=3, consumers=consumers))
    assert report.spill_bytes == 0


@pytest.mark.parametrize("name", ["llama8b_qkv_int8_16_tokens", "five_tokens_int4", "fp8_rows"])
def test_layers_share_one_kernel_and_copy_no_weight(name):
    shape = arg_specs.COMPILED[name]
    compiled, report = compile_case(shape, layers=3)
    assert report.kernels == 1
    weight = arg_specs.abstract(shape)[1]
    assert compiled.memory_analysis().temp_size_in_bytes < stored_bytes(weight.values)


@pytest.mark.parametrize("name", ["llama8b_qkv_int8_16_tokens", "five_tokens_int4", "fp8"])
def test_a_loop_over_a_stack_of_layers_copies_none_of_them(name):
    shape = arg_specs.COMPILED[name]
    rows, weight, _ = arg_specs.multiplied(shape)
    stack = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((8, *leaf.shape), leaf.dtype), weight)
    leaves, tree = jax.tree.flatten(stack)

    def summed(rows, *leaves):
        stack = jax.tree.unflatten(tree, leaves)
        zeros = jnp.zeros((shape.tokens, shape.outputs), shape.dtype)
        return jax.lax.fori_loop(
            0, 8, lambda layer, sums: sums + gpu.matmul(rows, stack, layer=layer, out_dtype=shape.dtype), zeros
        )

    compiled, report = aot_gpu.compiled_for_h100(summed, rows, *leaves)
    assert report.kernels == 1 and report.spill_bytes == 0
    assert compiled.memory_analysis().temp_size_in_bytes < stored_bytes(weight.values)


def test_registers_that_do_not_fit_are_reported():
    """The test of spills can fail: sums of 256 tokens, twice, need more registers than there are."""
    shape = arg_specs.COMPILED["int4_2048_tokens"]
    _, report = compile_case(shape, blocks=Blocks(tile_tokens=256, stages=2))
    assert report.spill_bytes > 0
