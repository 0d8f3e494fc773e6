"""Weights drawn on the device: scales, independence, the same model in fewer bits and over any mesh, little memory."""

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

from kernels.pallas.quant_matmul.quantise import quantise
from nanoserve.model.params import LAYER_FIELDS, Params, abstract
from nanoserve.model.quantised import Storage
from nanoserve.model.random_params import drawing, random_params
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec
from tests.model.factories import EXPERTS, TINY

REPOSITORY = pathlib.Path(__file__).parents[2]
SPEC = dataclasses.replace(TINY, family="qwen3", qkv_bias=True, qk_norm=True, hidden=64, head_size=16, ffn=128)
DEVIATIONS = 5  # of a sample's mean or variance from what it should be


@functools.cache
def drawn(spec: ModelSpec = SPEC, seed: int = 3) -> Params:
    return random_params(spec, jax.random.key(seed), jnp.float32)


def arrays(params: Params) -> dict[str, jax.Array]:
    """Every array by its name."""
    named = {field: getattr(params, field) for field in ("embed", "final_norm", "lm_head")}
    named |= {field: getattr(params.layers, field) for field in LAYER_FIELDS}
    return {field: array for field, array in named.items() if array is not None}


@pytest.mark.parametrize("spec", [SPEC, EXPERTS, dataclasses.replace(SPEC, tied_embeddings=True)])
@pytest.mark.parametrize("how", [None, Storage(scheme="int4"), Storage(scheme="fp8")])
def test_shapes_and_dtypes_are_those_of_the_model(spec, how):
    found = jax.eval_shape(lambda: random_params(spec, jax.random.key(0), how=how))
    wanted = abstract(spec, jnp.bfloat16, how=how)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(lambda a: (a.shape, a.dtype), wanted)


@pytest.mark.parametrize("spec", [SPEC, EXPERTS])
def test_matrices_keep_the_scale_of_activations(spec):
    summed = {"embed": spec.hidden, "bqkv": spec.hidden}  # everything else sums over its last axis but one
    for field, array in arrays(drawn(spec)).items():
        if "norm" not in field:
            variance = float(array.var()) * summed.get(field, array.shape[-2])
            assert abs(variance - 1) < DEVIATIONS * np.sqrt(2 / array.size), field
            assert abs(float(array.mean())) < DEVIATIONS * float(array.std()) / np.sqrt(array.size), field


@pytest.mark.parametrize("zero_centred", [False, True])
def test_norms_multiply_by_one(zero_centred):
    spec = dataclasses.replace(SPEC, zero_centred_norms=zero_centred)
    for field in ("attn_norm", "mlp_norm", "q_norm", "k_norm", "final_norm"):
        program, _ = drawing(spec, field, jnp.bfloat16, None, None)
        np.testing.assert_array_equal(program(jax.random.key(0)) + zero_centred, 1)


def test_layers_arrays_and_keys_are_independent_of_each_other():
    ours, others = drawn(), drawn(seed=4)
    rows = [layer for field in ("wo", "w_down", "wqkv") for layer in getattr(ours.layers, field)]
    rows += [ours.embed, ours.lm_head, others.embed, *others.layers.wo]
    flat = np.stack([np.asarray(row).reshape(-1)[:4096] for row in rows])
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(len(flat)), atol=DEVIATIONS / np.sqrt(flat.shape[1]))


@pytest.mark.parametrize("field", ["wqkv", "w_down"])
def test_a_layer_depends_on_the_key_the_array_and_its_number_alone(field):
    deeper = dataclasses.replace(SPEC, layers=5, vocab=128)
    (ours, _), (others, _) = (drawing(spec, field, jnp.bfloat16, None, None) for spec in (SPEC, deeper))
    key = jax.random.key(0)
    np.testing.assert_array_equal(ours(key), others(key)[: SPEC.layers])


@pytest.mark.parametrize("field", ["wqkv", "w_gate_up", "wo"])
@pytest.mark.parametrize("scheme", ["int4", "fp8"])
def test_quantised_matrices_are_the_drawn_ones_rounded(scheme, field):
    """Only what lies between two numbers may become the other where drawing and rounding are one program."""
    key = jax.random.key(5)
    (plain, _), (program, _) = (drawing(SPEC, field, jnp.bfloat16, how, None) for how in (None, Storage(scheme=scheme)))
    matrix, found = plain(key), program(key)
    exact = quantise(matrix, scheme, found.group if scheme == "int4" else None)
    np.testing.assert_allclose(found.scales.astype(float), exact.scales.astype(float), rtol=2**-7)
    assert np.mean(np.asarray(found.values != exact.values)) < 1e-3


@pytest.mark.parametrize("how", [None, Storage(scheme="int4")])
@pytest.mark.parametrize("field", ["w_gate_up", "w_down"])
def test_memory_on_the_way_does_not_grow_with_the_layers(how, field):
    def temporary(layers: int) -> int:
        program, _ = drawing(dataclasses.replace(SPEC, layers=layers), field, jnp.bfloat16, how, None)
        return program.lower(jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    assert temporary(40) - temporary(4) < SPEC.hidden * SPEC.ffn / 10  # a tenth of a layer's matrix, in bytes


def test_a_model_without_a_decoder_is_refused():
    with pytest.raises(ConfigError, match="only priced"):
        random_params(dataclasses.replace(TINY, family="gpt3"), jax.random.key(0))


PROGRAM = """
import dataclasses, jax, math, numpy as np
from nanoserve.executors.jax_build import load_model
from nanoserve.model import sharding
from nanoserve.model.quantised import Storage
from nanoserve.model.random_params import drawing
from nanoserve.weights.random import DrawnOnDevices
from tests.model.factories import *
from tests.model.parallel_layouts import CHUNKS, DENSE, F32

jax.config.update("jax_disable_most_optimizations", True)
prompts = prefill_rows(CHUNKS, tokens=16, rows=2)

def outcome(mesh):
    loaded = load_model(DENSE, DrawnOnDevices(DENSE, 1), F32, mesh=mesh)
    state = jax.device_put(empty_state(loaded.spec, loaded.kv_dtype), loaded.places)
    return loaded.steps.prefill(loaded.params, state, prompts, KEY)[1:], loaded.params

wanted, alone = outcome(None)
found, params = outcome(sharding.make_mesh(jax.devices()))  # four chips and two KV heads: they have copies
np.testing.assert_array_equal(found[0], wanted[0])
np.testing.assert_allclose(found[1], wanted[1], atol=1e-5)
np.testing.assert_array_equal(params.embed, alone.embed)
assert params.embed.sharding.spec == sharding.partition_spec(("vocab", "hidden"))

wide = dataclasses.replace(DENSE, ffn=256)
for spec, field, how, axes in (
    (DENSE, "wqkv", None, {"pipeline": 2}),
    (wide, "w_down", Storage(scheme="int4"), {"tensor": 2}),  # a group of 128 in each chip's half
    (EXPERTS, "w_experts_down", None, {"expert": 2, "tensor": 2}),
):
    mesh = sharding.make_mesh(jax.devices()[: math.prod(axes.values())], axes)
    (over_mesh, _), (here, _) = (drawing(spec, field, "float32", how, each) for each in (mesh, None))
    jax.tree.map(np.testing.assert_array_equal, over_mesh(KEY), here(KEY))
"""


def test_over_any_mesh_it_is_the_same_model():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | flags, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
