"""Experts, layers and heads shared by eight virtual devices: in each layout the tokens of one device."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from nanoserve.model.pipeline import microbatches
from nanoserve.model.sharding import AXES, check_divides
from nanoserve.roofline import split
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import MoeSpec
from tests.model.factories import TINY

REPOSITORY = pathlib.Path(__file__).parents[2]
TOLERANCE = 1e-5
# NANOSERVE_ALL_LAYOUTS=1 runs all of them, in every kind of step.
EVERY = bool(os.environ.get("NANOSERVE_ALL_LAYOUTS"))
LAYOUTS = [
    ("UNNORMALISED", {"expert": 4, "tensor": 2}),
    ("WINDOWS", {"pipeline": 2}),
    ("UNNORMALISED", {"pipeline": 2, "expert": 2, "tensor": 2}),
]
if EVERY:
    LAYOUTS += [
        ("EXPERTS", {"expert": 2}),
        ("EXPERTS", {"expert": 4}),
        ("DENSE", {"pipeline": 4, "tensor": 2}),
        ("QUANTISED", {"pipeline": 2, "tensor": 2}),
        ("WINDOWS", {"pipeline": 2, "tensor": 4}),
    ]


@pytest.fixture(scope="module")
def differences() -> list[list[tuple[int, float]]]:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    asked = ["every" if EVERY else "few", json.dumps(LAYOUTS)]
    command = [sys.executable, "-m", "tests.model.parallel_layouts", *asked]
    done = subprocess.run(command, env=os.environ | flags, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("place", range(len(LAYOUTS)), ids=[f"{name}-{axes}" for name, axes in LAYOUTS])
def test_a_layouts_tokens_are_those_of_one_device(differences, place):
    for tokens, logprobs in differences[place]:
        assert tokens == 0
        assert logprobs < TOLERANCE


def test_axes_are_those_that_are_priced_with_the_same_neighbours():
    assert AXES[::-1] == split.AXES


@pytest.mark.parametrize(("sizes", "count"), [((8, 16), 4), ((8, 18), 1), ((1,), 1), ((4,), 4)])
def test_a_step_is_cut_into_as_many_microbatches_as_stages_or_not_at_all(sizes, count):
    assert microbatches(sizes, 4) == count


@pytest.mark.parametrize(
    ("change", "axes", "says"),
    [
        ({"layers": 6}, {"pipeline": 4}, "layers = 6 does not divide over 4 chips"),
        ({"moe": MoeSpec(experts=6, top_k=2, ffn=48)}, {"expert": 4}, "experts = 6 does not divide over 4 chips"),
        ({"vocab": 98}, {"pipeline": 2, "tensor": 2}, "vocab = 98 does not divide over 4 chips"),
        ({}, {"expert": 2}, "has no experts for the mesh axis 'expert'"),
        (
            {"layers": 6, "sliding_window_tokens": 8, "full_attention_every": 2},
            {"pipeline": 2},
            "of 2 stages each has 3 layers, and every 2 layers one attends in full",
        ),
    ],
)
def test_what_cannot_be_cut_is_said_with_its_numbers(change, axes, says):
    with pytest.raises(ConfigError, match=says):
        check_divides(axes, dataclasses.replace(TINY, kv_heads=4, **change))
