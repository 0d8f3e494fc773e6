"""Tensor parallelism over virtual devices: the same tokens, and no link traffic that is not needed."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec

from nanoserve.model.sharding import check_divides, make_mesh, partition_spec, shardings
from nanoserve.specs.errors import ConfigError
from tests.model.factories import TINY

REPOSITORY = pathlib.Path(__file__).parents[2]

PROGRAM = """
import re, sys, jax, numpy as np
from nanoserve.model import sharding, step
from nanoserve.model.attention import attention_for
from nanoserve.model.params import from_tensors
from nanoserve.model.places import state_places
from nanoserve.weights.random import RandomTensors
from tests.model.factories import *

spec = {"TINY": TINY, "EXPERTS": EXPERTS}[sys.argv[1]]
mesh = sharding.make_mesh(jax.devices())
sequences = [sequence(0, 9), sequence(3, 5)]
prompts = prefill_rows([(s, 0, len(s.tokens)) for s in sequences], tokens=16, rows=2)
how = sampling(2, temperature=[0.0, 1.0], top_k=20)

def run(mixed, params, state):
    found = []
    for decode, prefill in (
        (decode_rows([], [], rows=2, how=how), prompts),
        (decode_rows(sequences, [9, 5], rows=2, how=how), prefill_rows([], tokens=16, rows=2)),
        (decode_rows(sequences, [10, 6], rows=2, how=how), prefill_rows([], tokens=16, rows=2)),
    ):
        state, tokens, logprobs = mixed(params, state, decode, prefill, KEY)
        found.append((tokens, logprobs))
    return state, found

source = RandomTensors(spec, 0, np.float32)
_, want = run(step.make_steps(spec).mixed, from_tensors(spec, source, np.float32), empty_state())
params = from_tensors(spec, source, np.float32, sharding.placer(mesh), sharding.ways_of(mesh))
places = state_places(spec, "xla", "float32", mesh)
state = jax.device_put(empty_state(), places)
mixed = step.make_steps(spec, attention=attention_for(spec, "xla", mesh), places=places).mixed
program = mixed.lower(params, state, decode_rows([], [], rows=2), prompts, KEY).compile()
state, found = run(program, params, state)

for (tokens, logprobs), (tokens_wanted, logprobs_wanted) in zip(found, want):
    np.testing.assert_array_equal(tokens, tokens_wanted)
    np.testing.assert_allclose(logprobs, logprobs_wanted, atol=1e-5)
assert state.pool.pages[0].addressable_shards[0].data.shape[2] == spec.kv_heads // 2

scopes = re.findall('all-[a-z]+[(].*op_name="([^"]*)"', program.as_text())
for part in ("attention/out", "mlp"):
    assert sum(part in scope for scope in scopes) == 1, (part, scopes)  # in the body of the scan
unwanted = [s for s in scopes if any(part in s for part in ("_attention", "write_kv", "qkv", "rope"))]
assert not unwanted, unwanted
"""


@pytest.mark.parametrize("spec", ["TINY", "EXPERTS"])
def test_two_devices_give_the_tokens_of_one_with_two_reductions_a_layer(spec):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, spec], env=os.environ | flags, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_only_kv_heads_ffn_and_vocabulary_are_cut():
    assert partition_spec(("hidden", "qkv")) == PartitionSpec(None, ("expert", "tensor"))
    assert partition_spec(("hidden",)) == PartitionSpec(None)
    cut = jax.tree.leaves(shardings(make_mesh(jax.devices()[:1]), TINY))
    assert sum("tensor" in jax.tree.leaves(tuple(sharding.spec)) for sharding in cut) == 2 + 4


@pytest.mark.parametrize(("axis", "size"), [("kv_heads", 3), ("ffn", 49), ("vocab", 97)])
def test_an_axis_that_does_not_divide_is_named(axis, size):
    spec = dataclasses.replace(TINY, heads=12, kv_heads=4)
    spec = dataclasses.replace(spec, **{axis: size})
    with pytest.raises(ConfigError, match=f"{axis} = {size} does not divide over 2 chips"):
        check_divides({"tensor": 2}, spec)
