"""Whole steps of real models through the compilers for an H100: no layer is copied, and no kernel spills."""

import pytest

from kernels.pallas import aot_gpu
from tests.executors import compiled_steps
from tests.executors.compiled_steps import expected_flops
from tests.executors.factories import outcomes_of

pytestmark = pytest.mark.skipif(not aot_gpu.available(), reason="needs the compiler for GPUs: run `make aot-gpu`")
CASES = {str(case): case for case in compiled_steps.CASES["gpu"]}


@pytest.fixture(scope="module")
def outcomes():
    return outcomes_of("gpu")


@pytest.mark.parametrize("case", CASES)
def test_a_whole_step_compiles_with_the_kernel_and_copies_no_layers_weights_or_kv(outcomes, case):
    found = outcomes[case]
    assert found["attention"] == "pallas_gpu"
    assert found["copies"] == []
    assert found["kernels"]["kernels"] == 1 and found["kernels"]["spill_bytes"] == 0


@pytest.mark.parametrize("case", CASES)
def test_resident_bytes_and_flops_are_those_of_the_models(outcomes, case):
    memory = outcomes[case]["memory"]
    resident = memory["weights"] + memory["kv"] + memory["rest"]
    assert resident == pytest.approx(memory["model_weights"] + memory["model_kv"], rel=0.02)
    assert memory["alias"] >= memory["kv"]
    if CASES[case].expert == 1:  # for a GPU, XLA multiplies every token with every expert that a chip holds
        expected = expected_flops(CASES[case], outcomes[case]["model_flops"])
        assert outcomes[case]["product_flops"] == pytest.approx(expected, rel=0.01)
