"""Random weights: every tensor of the model, the same whatever else is read, of a scale that keeps activations."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from nanoserve.specs.errors import ConfigError, WeightsError
from nanoserve.specs.models import MoeSpec
from nanoserve.weights.names import check_tensors, tensor_shapes
from nanoserve.weights.random import DrawnOnDevices, RandomTensors
from tests.weights.factories import tiny_spec

SPEC = tiny_spec(family="qwen2", qkv_bias=True, qk_norm=True)
MATRIX = "model.layers.1.mlp.down_proj.weight"
# Recorded with NumPy 2; Philox and the normal sampler are stable by NumPy's stream policy.
GOLDEN = [0.09679698944091797, 0.06723889708518982, 0.04687962681055069, 0.12017260491847992]


def test_every_tensor_of_the_model_is_there_in_its_shape_and_type():
    source = RandomTensors(SPEC, 0)
    check_tensors(source, SPEC)
    for name, shape in tensor_shapes(SPEC):
        array = source.read(name)
        assert (array.shape, array.dtype) == (shape, ml_dtypes.bfloat16), name


def test_a_tensor_depends_on_seed_and_name_alone():
    one, other = RandomTensors(SPEC, 7), RandomTensors(tiny_spec(layers=5), 7)
    first = one.read(MATRIX)
    for name in sorted(other.names(), reverse=True):
        other.read(name)
    np.testing.assert_array_equal(other.read(MATRIX), first)
    np.testing.assert_array_equal(one.read(MATRIX), first)


def test_seeds_and_names_give_different_values():
    values = [RandomTensors(SPEC, seed).read(MATRIX) for seed in (0, 1, 2**64 - 1)]
    values.append(RandomTensors(SPEC, 0).read(MATRIX.replace("layers.1", "layers.0")))
    flat = np.stack(values).astype(np.float32).reshape(len(values), -1)
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(len(values)), atol=0.05)


def test_values_are_the_same_on_every_machine():
    found = RandomTensors(tiny_spec(), 0, np.float32).read("model.embed_tokens.weight")[0, :4]
    np.testing.assert_array_equal(found, np.array(GOLDEN, np.float32))


@pytest.mark.parametrize("zero_centred", [False, True])
def test_matrices_keep_the_scale_of_activations_and_norms_multiply_by_one(zero_centred):
    spec = dataclasses.replace(SPEC, zero_centred_norms=zero_centred)
    source = RandomTensors(spec, 3, np.float32)
    for name, shape in tensor_shapes(spec):
        array = source.read(name)
        if name.endswith("norm.weight"):
            np.testing.assert_array_equal(array + zero_centred, 1)
        elif len(shape) == 2:
            # The variance of n normal draws has a relative deviation of sqrt(2 / n); five of them.
            assert abs(array.var() * shape[1] - 1) < 5 * np.sqrt(2 / array.size), name


def test_models_that_are_only_simulated_are_refused():
    moe = MoeSpec(experts=4, top_k=2, ffn=32, shared=1)
    for spec in (tiny_spec(moe=moe), tiny_spec(family="gpt3", biases=True, rope_theta=None)):
        with pytest.raises(WeightsError, match="roofline"):
            RandomTensors(spec, 0)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ConfigError, match="seed"):
        RandomTensors(SPEC, seed)


def test_the_fingerprint_tells_seed_type_and_model_apart():
    sources = [RandomTensors(SPEC, 0), RandomTensors(SPEC, 1), RandomTensors(SPEC, 0, np.float32)]
    sources.append(RandomTensors(tiny_spec(), 0))
    assert len({s.fingerprint() for s in sources}) == 4
    assert RandomTensors(SPEC, 0).fingerprint() == sources[0].fingerprint()


def test_weights_that_devices_draw_are_known_by_model_and_seed():
    one = DrawnOnDevices(SPEC, 0)
    assert one.fingerprint() == DrawnOnDevices(SPEC, 0).fingerprint()
    others = [DrawnOnDevices(SPEC, 1), DrawnOnDevices(tiny_spec(), 0), RandomTensors(SPEC, 0)]
    assert len({one.fingerprint(), *(each.fingerprint() for each in others)}) == 4
    assert SPEC.name in one.description and "seed 0" in one.description


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_that_devices_do_not_take_is_refused(seed):
    with pytest.raises(ConfigError, match="drawn on devices"):
        DrawnOnDevices(SPEC, seed)
