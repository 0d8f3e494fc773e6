"""Which precisions are executed: every one that is, and a reason for every one that is not."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest

from kernels.pallas.quant_matmul.weight import stored_bytes
from nanoserve.engine.config import EngineConfig
from nanoserve.executors import precisions
from nanoserve.executors.arrays import Ladders
from nanoserve.executors.choose import jax_obstacle
from nanoserve.executors.jax_build import load_model
from nanoserve.model.params import Ways, abstract
from nanoserve.roofline.memory import memory_plan, weight_bytes_per_chip
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model
from nanoserve.weights.random import RandomTensors
from tests.executors.factories import TINY, jax_executor, lengths_trace, virtual_engine

CPU = ClusterSpec(chip=chip("cpu_2core"), mesh={"tensor": 1})
H100, V5E = chip("h100_sxm"), chip("tpu_v5e")
LLAMA, MIXTRAL = model("llama-3.1-8b"), model("mixtral-8x7b")


def precision(weights: str, compute: str = "bf16", activations: str = "bf16", kv: str = "bf16") -> Precision:
    return Precision(weights=weights, compute=compute, activations=activations, kv=kv)


@pytest.mark.parametrize(
    ("weights", "compute", "kv"),
    [
        *itertools.product(("int8", "int4", "fp8"), ["f32"], ("f32", "int8", "fp8")),
        ("int4", "int8", "int8"),
        ("fp8", "fp8", "fp8"),
    ],
)
def test_quantised_weights_are_executed_on_this_machine(weights, compute, kv):
    assert jax_obstacle(TINY, CPU, Precision(weights=weights, kv=kv, activations="f32", compute=compute)) == ""


@pytest.mark.parametrize(
    ("spec", "chip", "how", "says"),
    [
        (LLAMA, H100, precision("fp4"), "Precision.weights = 'fp4' is priced but not executed"),
        (LLAMA, H100, precision("bf16", kv="int4"), "Precision.kv = 'int4' is priced but not executed"),
        (LLAMA, H100, precision("bf16", compute="fp8"), "of different dtypes are priced but not executed"),
        (LLAMA, H100, precision("int8", compute="fp8"), "multiplied in the dtype of activations.*'bf16', or in 'int8'"),
        (LLAMA, H100, precision("fp8", compute="f32"), "or in 'fp8'; not in 'f32'"),
        (LLAMA, V5E, precision("fp8", compute="fp8"), "tpu_v5e has no units for fp8: use Precision.compute = 'bf16'"),
        (MIXTRAL, H100, precision("int8"), "experts in int8 are priced but not executed"),
        (dataclasses.replace(LLAMA, ffn=14346), H100, precision("int4"), "has 14346, a multiple of none"),
    ],
)
def test_what_is_only_priced_says_why(spec, chip, how, says):
    assert re.search(says, precisions.obstacle(spec, chip, how, ways=1))


@pytest.mark.parametrize("how", [precision("fp8"), precision("fp8", compute="fp8"), precision("int8", "int8")])
def test_an_h100_executes_them_all(how):
    assert precisions.obstacle(LLAMA, H100, how, ways=8) == ""


@pytest.mark.parametrize("weights", ["int8", "int4", "fp8"])
@pytest.mark.parametrize(("name", "ways"), [("llama-3.1-8b", 1), ("llama-3.1-70b", 8)])
def test_what_is_stored_takes_what_the_memory_plan_says(weights, name, ways):
    """Scales of whole columns are the difference: the plan leaves out a float32 for thousands of weights."""
    spec, how = model(name), precision(weights)
    weights = abstract(spec, "bfloat16", Ways(ways, ways), precisions.storage(how))
    stored = sum(map(stored_bytes, jax.tree.leaves(weights)))
    planned = weight_bytes_per_chip(spec, how, 1)
    assert planned <= stored <= planned * 1.002


def test_llama_70b_in_int4_fits_one_h100_and_in_int8_does_not():
    cluster = ClusterSpec(chip=H100, mesh={"tensor": 1})
    room = [memory_plan(model("llama-3.1-70b"), cluster, precision(weights)).kv_bytes for weights in ("int4", "int8")]
    assert room[0] > 20e9 > 6e9 > room[1]


def test_an_engine_with_quantised_weights_serves_every_request():
    how = Precision(weights="int4", kv="f32", activations="f32", compute="f32")
    loaded = load_model(TINY, RandomTensors(TINY, 0, np.float32), how)
    trace = lengths_trace([9, 5, 17], [6, 8, 3], [0.0, 0.0, 0.0])
    config = EngineConfig(max_seqs=2, max_step_tokens=16, page_tokens=4, max_horizon_steps=2)
    ladders = Ladders(decode_rows=(2,), prefill_tokens=(16,), prefill_rows=2, table_pages=8, loop_steps=2)
    executor = jax_executor(trace, config, 16, model=loaded, ladders=ladders)
    virtual_engine(trace, config, 16, executor, TINY).run()
    assert [len(executor.book.outputs[index]) for index in range(3)] == [6, 8, 3]
