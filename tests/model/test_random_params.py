"""Weights drawn on the device: scales, independence, the same model in fewer bits and over any mesh, little memory."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas.quant_matmul.quantise import quantise
from nanoserve.model.params import AXES, LAYER_FIELDS, Params, abstract
from nanoserve.model.quantised import MATRICES, Storage
from nanoserve.model.random_params import drawing, random_params
from nanoserve.specs.errors import ConfigError
from tests.model.factories import EXPERTS, TINY

REPOSITORY = pathlib.Path(__file__).parents[2]
KEY = jax.random.key(3)
SPEC = dataclasses.replace(TINY, family="qwen3", qkv_bias=True, qk_norm=True, hidden=64, head_size=16, ffn=128)
DEVIATIONS = 5  # of a sample's variance from what it should be


def arrays(params: Params) -> dict[str, jax.Array]:
    """Every array by its name."""
    named = {field: getattr(params, field) for field in ("embed", "final_norm", "lm_head")}
    named |= {field: getattr(params.layers, field) for field in LAYER_FIELDS}
    return {field: array for field, array in named.items() if array is not None}


@pytest.mark.parametrize("spec", [SPEC, EXPERTS, dataclasses.replace(SPEC, tied_embeddings=True)])
def test_shapes_and_dtypes_are_those_of_the_model(spec):
    drawn, wanted = random_params(spec, KEY), abstract(spec, jnp.bfloat16)
    assert jax.tree.structure(drawn) == jax.tree.structure(wanted)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), drawn) == jax.tree.map(lambda a: (a.shape, a.dtype), wanted)


@pytest.mark.parametrize("spec", [SPEC, EXPERTS])
def test_matrices_keep_the_scale_of_activations(spec):
    summed = {"embed": spec.hidden, "bqkv": spec.hidden}  # everything else sums over its last axis but one
    for field, array in arrays(random_params(spec, KEY, jnp.float32)).items():
        if "norm" not in field:
            variance = float(array.var()) * summed.get(field, array.shape[-2])
            assert abs(variance - 1) < DEVIATIONS * np.sqrt(2 / array.size), field
            assert abs(float(array.mean())) < DEVIATIONS * float(array.std()) / np.sqrt(array.size), field


@pytest.mark.parametrize("zero_centred", [False, True])
def test_norms_multiply_by_one(zero_centred):
    drawn = random_params(dataclasses.replace(SPEC, zero_centred_norms=zero_centred), KEY)
    for field in ("attn_norm", "mlp_norm", "q_norm", "k_norm"):
        np.testing.assert_array_equal(getattr(drawn.layers, field) + zero_centred, 1)
    np.testing.assert_array_equal(drawn.final_norm + zero_centred, 1)


def test_layers_arrays_and_keys_are_independent_of_each_other():
    ours, others = (random_params(SPEC, jax.random.key(seed), jnp.float32) for seed in (3, 4))
    rows = [layer for field in ("wo", "w_down", "wqkv") for layer in getattr(ours.layers, field)]
    rows += [ours.embed, ours.lm_head, others.embed, *others.layers.wo]
    flat = np.stack([np.asarray(row).reshape(-1)[:4096] for row in rows])
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(len(flat)), atol=DEVIATIONS / np.sqrt(flat.shape[1]))


def test_an_array_depends_on_the_key_its_name_and_its_shape_alone():
    deeper = dataclasses.replace(SPEC, layers=5, vocab=128, qkv_bias=False)
    ours, others = random_params(SPEC, KEY), random_params(deeper, KEY)
    for field in ("wqkv", "wo", "w_gate_up", "w_down"):
        np.testing.assert_array_equal(getattr(ours.layers, field), getattr(others.layers, field)[: SPEC.layers])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("scheme", ["int4", "int8", "fp8"])
def test_quantised_matrices_are_the_drawn_ones_rounded(scheme, dtype):
    """Only where an element lies between two numbers can a compiler that fuses drawing and rounding find the other."""
    plain, found = random_params(SPEC, KEY, dtype), random_params(SPEC, KEY, dtype, how=Storage(scheme=scheme))
    wanted = abstract(SPEC, dtype, how=Storage(scheme=scheme))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(lambda a: (a.shape, a.dtype), wanted)
    for field in MATRICES:
        stack = getattr(found.layers, field).stack
        exact = quantise(getattr(plain.layers, field), scheme, stack.group if scheme == "int4" else None)
        np.testing.assert_allclose(stack.scales.astype(float), exact.scales.astype(float), rtol=2**-7)
        assert np.mean(np.asarray(stack.values != exact.values)) < 1e-3, field
    np.testing.assert_array_equal(found.embed, plain.embed)


@pytest.mark.parametrize("how", [None, Storage(scheme="int4")])
def test_no_program_holds_more_than_a_layer_beside_what_it_returns(how):
    """A layer in float32, and of its generator's counters as much: on a CPU its rounds are a loop, not one expression."""
    spec = dataclasses.replace(SPEC, layers=40)
    for field in (*MATRICES, "embed", "lm_head"):
        program, wanted = drawing(spec, field, jnp.bfloat16, how, None)
        memory = program.lower(KEY).compile().memory_analysis()
        whole = np.prod(abstract(spec, jnp.bfloat16).embed.shape) if AXES[field][0] != "layers" else None
        layer = whole or np.prod(getattr(abstract(spec, jnp.bfloat16).layers, field).shape[1:])
        assert memory.temp_size_in_bytes <= 6 * 4 * layer, field
        assert wanted is not None


def test_a_model_without_a_decoder_is_refused():
    with pytest.raises(ConfigError, match="only priced"):
        random_params(dataclasses.replace(TINY, family="gpt3"), KEY)
