"""Whole steps of Llama through the TPU compiler: they fit where the memory model says so, and copy no layer."""

import importlib.util

import pytest

from tests.executors import compiled_steps
from tests.executors.compiled_steps import TOO_LARGE
from tests.executors.factories import outcomes_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: install the extra tpu-aot"
)
FITTING = [str(case) for case in compiled_steps.CASES["tpu"] if str(case) != TOO_LARGE]


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
    if "int8-bf16" not in case:  # products with quantised weights are in a kernel, and not in the program's text
        assert outcomes[case]["product_flops"] == pytest.approx(outcomes[case]["model_flops"], rel=0.01)


def test_what_does_not_fit_is_refused_in_the_compilers_own_words(outcomes):
    assert "CompileTimeHbmOom" in outcomes[TOO_LARGE]["refused"]
