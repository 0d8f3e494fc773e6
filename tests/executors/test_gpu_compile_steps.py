"""Whole steps of real models through the compilers for an H100: no layer is copied, no kernel spills, and the host
launches command buffers (CUDA graphs) without a wait."""

import pytest

from kernels.pallas import aot_gpu
from tests.executors import compiled_steps
from tests.executors.compiled_steps import expected_flops
from tests.executors.factories import outcomes_of

pytestmark = pytest.mark.skipif(not aot_gpu.available(), reason="needs the compiler for GPUs: run `make aot-gpu`")
CASES = {str(case): case for case in compiled_steps.CASES["gpu"]}
ALONE = [name for name, case in CASES.items() if case.chips * case.expert == 1 and case.program != "verify_step"]
MOST_OTHERS = 8  # launches of a call besides one command buffer for each layer
MOST_OF_A_LAYER = 18  # kernels: 16 with bf16 weights, and with int4 ones two more


@pytest.fixture(scope="module")
def outcomes():
    return outcomes_of("gpu")


@pytest.mark.parametrize("case", CASES)
def test_a_whole_step_compiles_with_the_kernel_and_copies_no_layers_weights_or_kv(outcomes, case):
    found = outcomes[case]
    assert found["attention"] == "pallas_gpu"
    assert found["copies"] == []
    products = 4 if CASES[case].weights != "bf16" else 0
    assert found["kernels"]["kernels"] == 1 + products and found["kernels"]["spill_bytes"] == 0


@pytest.mark.parametrize("case", CASES)
def test_resident_bytes_and_flops_are_those_of_the_models(outcomes, case):
    memory = outcomes[case]["memory"]
    resident = memory["weights"] + memory["kv"] + memory["rest"]
    assert resident == pytest.approx(memory["model_weights"] + memory["model_kv"], rel=0.02)
    assert memory["alias"] >= memory["kv"]
    # For a GPU, XLA multiplies every token with every expert that a chip holds; products in kernels it does not know.
    if CASES[case].expert == 1 and CASES[case].weights == "bf16":
        expected = expected_flops(CASES[case], outcomes[case]["model_flops"])
        assert outcomes[case]["product_flops"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("case", ALONE)
def test_a_step_of_one_chip_waits_for_nothing_and_its_layers_are_command_buffers(outcomes, case):
    host, layers = outcomes[case]["launched"]["host"], outcomes[case]["launched"]["layers"]
    asked_whether_to_go_on = 2 if CASES[case].program == "decode_loop" else 0  # before the only step, and after it
    assert host["waits"] == asked_whether_to_go_on
    assert layers <= host["command_buffers"] <= host["launches"] <= layers + MOST_OTHERS


@pytest.mark.parametrize("case", [name for name in ALONE if CASES[name].batch == 1])
def test_a_layer_of_one_row_is_few_kernels_and_moves_little_beside_weights_and_kv(outcomes, case):
    memory, launched = outcomes[case]["memory"], outcomes[case]["launched"]
    assert outcomes[case]["of_a_layer"] <= MOST_OF_A_LAYER
    assert max(launched["extra_bytes"], memory["temp"]) < 0.01 * memory["weights"]
