"""Every variant of the TPU kernel for quantised weights is accepted by the compiler of every chip, without a TPU."""

import importlib.util
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest

from kernels.pallas.quant_matmul.arg_specs import COMPILED
from tests.kernels import tpu_compile_quant_matmul as compiled

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: install the extra tpu-aot"
)

BYTES_TOLERANCE = 0.01  # rows of 1 and 5 are padded to whole tiles, scales of rows to whole lanes


@pytest.fixture(scope="module")
def outcomes():
    process = subprocess.run([sys.executable, "-m", compiled.__name__], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return {outcome["case"]: outcome for outcome in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize(("chip", "name"), compiled.cases())
def test_the_compiler_takes_it_and_its_declared_cost_without_copying_the_weight(outcomes, chip, name):
    outcome, shape = outcomes[f"{chip}-{name}"], COMPILED[name]
    assert "error" not in outcome, outcome["error"]
    assert outcome["weight_copies"] == 0
    assert outcome["flops"] == 2 * shape.tokens * shape.inputs * shape.outputs
    result_bytes = shape.tokens * shape.outputs * jnp.dtype(shape.dtype).itemsize
    assert outcome["bytes"] == pytest.approx(outcome["argument_bytes"] + result_bytes, rel=BYTES_TOLERANCE)


@pytest.mark.parametrize("chip", compiled.CHIPS)
def test_a_4_bit_weight_takes_half_a_byte_in_memory(outcomes, chip):
    shape = COMPILED["llama8b_down_int4_128_tokens"]
    weight_bytes = shape.inputs * shape.outputs * 4.125 / 8
    rows_bytes = shape.tokens * shape.inputs * 2
    got = outcomes[f"{chip}-llama8b_down_int4_128_tokens"]["argument_bytes"]
    assert got == pytest.approx(weight_bytes + rows_bytes, rel=1e-3)
