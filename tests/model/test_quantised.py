"""Quantised matrices in a model: the numbers they stand for, on one chip and on two, and nothing else changed."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas.quant_matmul import reference
from nanoserve.model import decoder, quantised
from nanoserve.model.params import Params, abstract, from_tensors
from nanoserve.model.product import choose_product, product
from nanoserve.model.quantised import MATRICES, QuantMatrix, Storage
from nanoserve.model.quantising import quantiser
from nanoserve.model.sharding import make_mesh, shardings
from nanoserve.model.step import make_steps
from nanoserve.specs.errors import ConfigError
from nanoserve.weights.random import RandomTensors
from tests.model.factories import KEY, TINY, empty_state, prefill_rows, sequence

REPOSITORY = pathlib.Path(__file__).parents[2]
WIDE = dataclasses.replace(TINY, hidden=96, head_size=16, ffn=128, qkv_bias=True)  # groups of 32, 64 and 128
SOURCE = RandomTensors(WIDE, 0, np.float32)
SCHEMES = pytest.mark.parametrize("scheme", ["int8", "int4", "fp8"])
ROUNDING = 1e-4  # of a log-probability: float32 sums in another order


@functools.cache
def quantised_params(scheme: str, dtype=jnp.float32) -> Params:
    return from_tensors(WIDE, SOURCE, dtype, quantise=quantiser(Storage(scheme=scheme)))


def with_rows(params: Params, rows: str | None) -> Params:
    """The same weights, multiplied by rows that are rounded first."""

    def changed(matrix: QuantMatrix) -> QuantMatrix:
        return matrix.replace(how=dataclasses.replace(matrix.how, rows=rows))

    return params.replace(
        layers=params.layers.replace(**{field: changed(getattr(params.layers, field)) for field in MATRICES})
    )


@functools.cache
def plain_params(dtype=jnp.float32) -> Params:
    return from_tensors(WIDE, SOURCE, dtype)


def dequantised(params: Params) -> Params:
    """The same weights as plain float32 matrices."""

    def plain(field: str) -> jax.Array:
        stack = getattr(params.layers, field).stack
        layers = zip(stack.values, stack.scales, strict=True)
        return jnp.asarray([reference.dequantise(*layer) for layer in layers], jnp.float32)

    return params.replace(layers=params.layers.replace(**{field: plain(field) for field in MATRICES}))


def prefilled(params: Params):
    sequences = [sequence(0, 9), sequence(3, 5)]
    prompts = prefill_rows([(s, 0, len(s.tokens)) for s in sequences], tokens=16, rows=2)
    _, tokens, logprobs = make_steps(WIDE).prefill(params, empty_state(WIDE), prompts, KEY)
    return tokens, logprobs


@SCHEMES
def test_a_step_computes_with_the_numbers_that_are_stored(scheme):
    params = quantised_params(scheme)
    tokens, logprobs = prefilled(params)
    tokens_wanted, logprobs_wanted = prefilled(dequantised(params))
    np.testing.assert_array_equal(tokens, tokens_wanted)
    np.testing.assert_allclose(logprobs, logprobs_wanted, atol=ROUNDING)


@SCHEMES
@pytest.mark.parametrize("field", MATRICES)
def test_a_matrix_is_the_checkpoint_s_within_a_step_of_its_scheme(scheme, field):
    stored = getattr(dequantised(quantised_params(scheme)).layers, field)
    exact = getattr(plain_params().layers, field)
    largest = np.abs(exact).max()
    assert 0 < np.abs(stored - exact).max() <= largest * {"int8": 1 / 254, "int4": 1 / 13.9, "fp8": 1 / 16}[scheme]


@SCHEMES
def test_everything_else_stays_as_it_was(scheme):
    found, plain = quantised_params(scheme, dtype=jnp.bfloat16), plain_params(jnp.bfloat16)
    gone = dict.fromkeys(MATRICES)
    rest = found.replace(layers=found.layers.replace(**gone)), plain.replace(layers=plain.layers.replace(**gone))
    assert len(jax.tree.leaves(rest[0])) == 6
    jax.tree.map(np.testing.assert_array_equal, *rest)


@pytest.mark.parametrize(
    ("scheme", "rows", "most"), [("int8", "int8", 0.02), ("int4", "int8", 0.02), ("fp8", "fp8", 0.1)]
)
def test_rounded_rows_cost_as_much_as_their_bits_say(scheme, rows, most):
    exact, rounded = (
        decoder.project_qkv(WIDE, decoder.one_layer(params.layers, jnp.int32(1)), X_TD)[0]
        for params in (quantised_params(scheme), with_rows(quantised_params(scheme), rows))
    )
    error = jnp.abs(rounded - exact).max() / jnp.abs(exact).max()
    assert 0 < error < most


X_TD = jax.random.normal(jax.random.key(1), (5, WIDE.hidden))


@SCHEMES
def test_abstract_shapes_are_those_of_a_loaded_checkpoint(scheme):
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), quantised_params(scheme))
    made = abstract(WIDE, jnp.float32, how=Storage(scheme=scheme))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made)


@SCHEMES
def test_chips_share_values_and_the_scales_that_go_with_them(scheme):
    how = Storage(scheme=scheme)
    placed = shardings(make_mesh(jax.devices()[:1]), WIDE, how)
    assert jax.tree.structure(placed) == jax.tree.structure(abstract(WIDE, jnp.float32, how=how))
    cut = {field: [tuple(leaf.spec) for leaf in jax.tree.leaves(getattr(placed.layers, field))] for field in MATRICES}
    for columns, rows, mine in (("wqkv", "wo", ("expert", "tensor")), ("w_gate_up", "w_down", "tensor")):
        assert cut[columns] == [("pipeline", mine, None), ("pipeline", None, mine)]
        assert cut[rows] == [("pipeline", None, mine), ("pipeline", mine if scheme == "int4" else None, None)]


def test_a_loop_over_layers_leaves_quantised_matrices_in_their_stack():
    layers = quantised_params("int8").layers
    one = decoder.one_layer(layers, jnp.int32(1))
    assert one.wo.stack.values is layers.wo.stack.values
    alone = jax.tree.map(lambda leaf: leaf[1:], layers.wo.stack)
    want = product(jnp.float32, X_TD[:, :64], dataclasses.replace(layers.wo, stack=alone, index=jnp.int32(0)))
    np.testing.assert_array_equal(product(jnp.float32, X_TD[:, :64], one.wo), want)


@pytest.mark.parametrize(("inputs", "group"), [(256, 128), (192, 64), (96, 32)])
def test_groups_are_the_largest_that_divide_a_chip_s_inputs(inputs, group):
    assert quantised.group_of("int4", inputs) == group
    assert quantised.group_of("int8", inputs) == quantised.group_of("fp8", inputs) == inputs


def test_inputs_that_no_group_divides_are_refused_by_number():
    with pytest.raises(ConfigError, match=r"int4 weights have a scale for each 32, 64, 128 inputs.* has 48"):
        quantised.abstract("w_down", (2, 48, 32), Storage(scheme="int4"), 1)
    with pytest.raises(ConfigError, match="has 16, a multiple of none: use int8, or fewer chips"):
        quantised.abstract("wo", (2, 32, 32), Storage(scheme="int4"), 2)


LLAMA = dataclasses.replace(TINY, hidden=1024, heads=8, kv_heads=4, head_size=128, ffn=2048)


@pytest.mark.parametrize(
    ("scheme", "rows", "target", "dtype", "name", "why"),
    [
        ("int8", None, "tpu", "bfloat16", "pallas_tpu", "it is the kernel for tpu"),
        ("int4", None, "hopper", "bfloat16", "pallas_gpu", "it is the kernel for hopper"),
        ("fp8", "fp8", "hopper", "bfloat16", "pallas_gpu", "it is the kernel for hopper"),
        ("fp8", "fp8", "tpu", "bfloat16", "xla", "not float8_e4m3fn"),
        ("int8", None, "hopper", "float32", "xla", "not float32"),
        ("int8", None, "", "bfloat16", "xla", "there is no kernel for this device"),
    ],
)
def test_the_kernel_of_a_chip_is_chosen_where_it_serves_every_matrix(scheme, rows, target, dtype, name, why):
    choice = choose_product("auto", LLAMA, Storage(scheme=scheme, rows=rows), target, dtype=dtype, ways=2)
    assert choice.name == name and why in choice.why


def test_one_matrix_that_a_kernel_does_not_serve_leaves_all_to_xla():
    choice = choose_product("auto", LLAMA, Storage(scheme="int8"), "hopper", dtype="bfloat16", ways=4)
    assert choice.name == "pallas_gpu"
    narrow = dataclasses.replace(LLAMA, ffn=2048 + 64)
    choice = choose_product("auto", narrow, Storage(scheme="int8"), "hopper", dtype="bfloat16", ways=1)
    assert choice.name == "xla" and "multiple of 128 inputs" in choice.why


def test_an_implementation_that_was_asked_for_is_never_replaced():
    with pytest.raises(ConfigError, match="GPU kernel multiplies rows of"):
        choose_product("pallas_gpu", LLAMA, Storage(scheme="int8"), "hopper", dtype="float32", ways=1)


PROGRAM = """
import jax, numpy as np, sys
from nanoserve.model import sharding, step
from nanoserve.model.attention import attention_for
from nanoserve.model.params import from_tensors
from nanoserve.model.places import state_places
from nanoserve.model.quantised import Storage
from nanoserve.model.quantising import quantiser
from nanoserve.weights.random import RandomTensors
from tests.model.factories import *

spec = dataclasses.replace(TINY, hidden=64, head_size=64, ffn=256)  # groups of 128 on one chip and on two
source = RandomTensors(spec, 0, np.float32)
mesh = sharding.make_mesh(jax.devices())
sequences = [sequence(0, 9), sequence(3, 5)]
prompts = prefill_rows([(s, 0, len(s.tokens)) for s in sequences], tokens=16, rows=2)
for scheme in ("int8", "int4"):
    how = Storage(scheme=scheme)
    alone = from_tensors(spec, source, np.float32, quantise=quantiser(how))
    _, tokens_wanted, logprobs_wanted = step.make_steps(spec).prefill(alone, empty_state(spec), prompts, KEY)
    params = from_tensors(spec, source, np.float32, sharding.placer(mesh), sharding.ways_of(mesh), quantiser(how, mesh))
    assert len(params.layers.w_down.stack.values.addressable_shards[0].data[0, 0]) == spec.ffn // 2
    np.testing.assert_array_equal(params.layers.w_down.stack.values, alone.layers.w_down.stack.values)
    places = state_places(spec, "xla", "float32", mesh)
    prefill = step.make_steps(spec, attention=attention_for(spec, "xla", mesh), places=places).prefill
    state = jax.device_put(empty_state(spec), places)
    program = prefill.lower(params, state, prompts, KEY).compile()
    _, tokens, logprobs = program(params, state, prompts, KEY)
    np.testing.assert_array_equal(tokens, tokens_wanted)
    np.testing.assert_allclose(logprobs, logprobs_wanted, atol=1e-5)
    assert "all-gather" not in "".join(l for l in program.as_text().splitlines() if "/mlp" in l or "/qkv" in l)
"""


def test_two_devices_give_the_tokens_of_one():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | flags, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
