"""The part `flags`: its options are ones that XLA knows, and the same step is measured under each."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import h100
from experiments.bench.parts import flags
from experiments.bench.parts.flags import CANDIDATES, SHIPPED


@pytest.mark.parametrize("name", CANDIDATES)
def test_xla_knows_every_option_and_its_value(name):
    add_one = jax.jit(lambda x: x + 1, compiler_options=dict(CANDIDATES[name]))
    add_one.lower(jnp.ones(3)).compile()  # raises for a name or a value that XLA does not know


def test_xla_refuses_an_option_that_it_does_not_know():
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_gpu_enable_comand_buffer": ""}).lower(jnp.ones(3)).compile()


@pytest.mark.parametrize("toy", [True, False])
def test_every_step_is_measured_as_shipped_before_any_candidate(toy):
    cases = flags.cases(toy)
    assert len({case.name for case in cases}) == len(cases)
    steps = list(dict.fromkeys(case.step.name for case in cases))
    for step in steps:
        assert next(case.candidate for case in cases if case.step.name == step) == SHIPPED


def test_a_candidate_is_held_against_the_step_as_it_is_shipped(tmp_path):
    out = tmp_path / "flags.json"
    assert h100.main(["h100.py", "--parts=flags", "--toy", f"--out={out}"]) == 0
    shipped, flagged, padded = json.loads(out.read_text())["parts"]["flags"].values()
    assert shipped["status"] == flagged["status"] == padded["status"] == "measured"
    assert shipped["options"] == padded["options"] == {} and flagged["options"] == CANDIDATES[flagged["candidate"]]
    assert [each["padded_rows"] for each in (shipped, flagged, padded)] == [2, 2, 8]
    for each in (flagged, padded):
        assert each["times_shipped"] == each["time"]["median_s"] / shipped["time"]["median_s"]
