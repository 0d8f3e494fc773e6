"""Whole steps of real models through the TPU compiler: they fit where the memory model says so, and copy no layer.

Experts that eight groups of chips share, and layers in two stages, are among them, with fewer layers.
"""

import importlib.util

import pytest

from tests.executors import compiled_steps
from tests.executors.compiled_steps import TOO_LARGE, expected_flops
from tests.executors.factories import outcomes_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: install the extra tpu-aot"
)
CASES = {str(case): case for case in compiled_steps.CASES["tpu"]}
FITTING = [name for name in CASES if name != TOO_LARGE]


@pytest.fixture(scope="module")
def outcomes():
    return outcomes_of("tpu")


@pytest.mark.parametrize("case", FITTING)
def test_a_whole_step_compiles_with_the_kernel_and_copies_no_layers_weights_or_kv(outcomes, case):
    found = outcomes[case]
    assert not found["refused"]
    assert found["attention"] == "pallas_tpu"
    assert found["copies"] == []


@pytest.mark.parametrize("case", FITTING)
def test_resident_bytes_and_flops_are_those_of_the_models(outcomes, case):
    memory = outcomes[case]["memory"]
    resident = memory["weights"] + memory["kv"] + memory["rest"]
    assert resident == pytest.approx(memory["model_weights"] + memory["model_kv"], rel=0.02)
    assert memory["alias"] >= memory["kv"]  # the pool is updated in place
    if CASES[case].weights == "bf16" and CASES[case].expert == 1:  # kernels' products are not in the program's text
        expected = expected_flops(CASES[case], outcomes[case]["model_flops"])
        assert outcomes[case]["product_flops"] == pytest.approx(expected, rel=0.01)


def test_what_does_not_fit_is_refused_in_the_compilers_own_words(outcomes):
    assert "CompileTimeHbmOom" in outcomes[TOO_LARGE]["refused"]
