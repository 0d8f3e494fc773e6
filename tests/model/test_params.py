"""Checkpoints into arrays: every element in its place, and mistakes reported by tensor name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanoserve.model.params import AXES, FAMILIES, abstract, from_tensors, logical_axes, supports
from nanoserve.specs.errors import ConfigError, WeightsError
from nanoserve.specs.models import MlaSpec, MoeSpec
from nanoserve.weights.random import RandomTensors
from tests.model.factories import EXPERTS, TINY

EVERYTHING = dataclasses.replace(TINY, qkv_bias=True, qk_norm=True, post_norms=True)
ALL_ARRAYS = pytest.mark.parametrize("spec", [EVERYTHING, EXPERTS], ids=["dense", "experts"])
UNSUPPORTED = {
    "experts that are always on": {"moe": MoeSpec(experts=4, top_k=2, ffn=8, shared=1)},
    "dense layers before": {"moe": MoeSpec(experts=4, top_k=2, ffn=8, dense_layers=1)},
    "latent attention": {"mla": MlaSpec(q_rank=8, kv_rank=8, nope_size=8, rope_size=8, value_size=8)},
    "biases everywhere": {"biases": True},
    "absolute positions": {"rope_theta": None},
    "without gate": {"gated_mlp": False},
    "family 'gpt3'": {"family": "gpt3"},
}


class Changed:
    """A source with one tensor gone or of another shape."""

    def __init__(self, name: str, array: np.ndarray | None):
        self._source, self._name, self._array = RandomTensors(TINY, seed=0, dtype=np.float32), name, array
        self.description = "changed.safetensors"

    def names(self):
        return self._source.names() - ({self._name} if self._array is None else set())

    def shape(self, name):
        return self._source.shape(name) if name != self._name else self._array.shape

    def read(self, name):
        return self._source.read(name) if name != self._name else self._array


def test_heads_of_the_checkpoint_land_in_their_kv_group():
    source = RandomTensors(TINY, seed=1, dtype=np.float32)
    layer = from_tensors(TINY, source, jnp.float32).layers
    h, x = TINY.head_size, np.random.default_rng(0).standard_normal(TINY.hidden).astype(np.float32)
    wqkv_DKJh = layer.wqkv[1].reshape(TINY.hidden, TINY.kv_heads, TINY.query_groups + 2, h)
    for part, heads in (("q", TINY.heads), ("k", TINY.kv_heads), ("v", TINY.kv_heads)):
        plain = source.read(f"model.layers.1.self_attn.{part}_proj.weight") @ x
        for head in range(heads):
            group, place = {"q": divmod(head, TINY.query_groups), "k": (head, -2), "v": (head, -1)}[part]
            got = x @ wqkv_DKJh[:, group, place]
            np.testing.assert_allclose(got, plain[head * h : (head + 1) * h], atol=1e-5)


def test_two_checkpoints_give_different_layers():
    params = from_tensors(TINY, RandomTensors(TINY, seed=1), jnp.float32)
    other = from_tensors(TINY, RandomTensors(TINY, seed=2), jnp.float32)
    assert not jnp.array_equal(params.layers.wo[0], params.layers.wo[1])
    assert not jnp.array_equal(params.layers.wo, other.layers.wo)


def test_experts_and_router_of_the_checkpoint_land_in_their_places():
    source = RandomTensors(EXPERTS, seed=1, dtype=np.float32)
    layer = from_tensors(EXPERTS, source, jnp.float32).layers
    for expert in range(EXPERTS.moe.experts):
        gate, up, down = (
            source.read(f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight") for part in ("gate", "up", "down")
        )
        np.testing.assert_array_equal(layer.w_experts_gate_up[1, expert], np.concatenate([gate.T, up.T], axis=1))
        np.testing.assert_array_equal(layer.w_experts_down[1, expert], down.T)
    np.testing.assert_array_equal(layer.router[1], source.read("model.layers.1.mlp.gate.weight").T)


@ALL_ARRAYS
def test_abstract_shapes_are_those_of_a_loaded_checkpoint(spec):
    loaded = from_tensors(spec, RandomTensors(spec, seed=0), jnp.bfloat16)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), loaded)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract(spec, jnp.bfloat16))


@ALL_ARRAYS
def test_logical_axes_name_every_dimension(spec):
    named = logical_axes(spec)
    shapes = abstract(spec, jnp.float32)
    leaves, tree = jax.tree.flatten(shapes)
    for axes, leaf in zip(tree.flatten_up_to(named), leaves, strict=True):
        assert len(axes) == len(set(axes)) == leaf.ndim


def test_a_tied_model_has_no_head_of_its_own():
    tied = dataclasses.replace(TINY, tied_embeddings=True)
    assert from_tensors(tied, RandomTensors(tied, seed=0), jnp.float32).lm_head is None


def test_arrays_are_placed_one_by_one_with_their_axes():
    seen = []
    from_tensors(TINY, RandomTensors(TINY, seed=0), jnp.bfloat16, lambda array, axes: seen.append((array, axes)))
    assert [axes for _, axes in seen[:3]] == [AXES["embed"], AXES["attn_norm"], AXES["wqkv"]]
    assert all(array.ndim == len(axes) and array.dtype == jnp.bfloat16 for array, axes in seen)


def test_a_missing_tensor_is_named_with_the_shape_it_should_have():
    with pytest.raises(WeightsError, match=r"changed.*no tensor 'model.norm.weight'.*'tiny'.*\[32\]"):
        from_tensors(TINY, Changed("model.norm.weight", None), jnp.float32)


def test_a_wrong_shape_is_named_with_both_shapes():
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(WeightsError, match=rf"tensor '{name}' has shape \[3, 3\].*shape \[48, 32\]"):
        from_tensors(TINY, Changed(name, np.zeros((3, 3), np.float32)), jnp.float32)


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_a_model_without_decoder_says_why(reason):
    spec = dataclasses.replace(TINY, **UNSUPPORTED[reason])
    assert reason in (supports(spec) or "")
    with pytest.raises(ConfigError, match=f"'tiny' cannot be executed, only priced: .*{reason}"):
        abstract(spec, jnp.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_supported(family):
    assert supports(dataclasses.replace(TINY, family=family)) is None
