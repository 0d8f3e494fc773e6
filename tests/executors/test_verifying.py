"""Speculation in the real engine: whatever is drafted, by whom, and however plans are made, tokens stay the same."""

import dataclasses

import jax
import numpy as np
import pytest

from nanoserve.engine.config import EngineConfig
from nanoserve.executors.speculation import speculate
from nanoserve.specs.errors import ConfigError
from tests.executors.factories import (
    TINY,
    coarse_ladders,
    jax_executor,
    lengths_trace,
    mixed_trace,
    tiny_model,
    virtual_engine,
)

CONFIG = EngineConfig(
    max_seqs=4, max_step_tokens=32, page_tokens=4, max_horizon_steps=8, free_page_watermark=0.0, max_context_tokens=128
)
TRACE = mixed_trace(10, seed=2, rate_rps=1e6, longest=40)
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01}
PAGES = 60
TIGHT_PAGES = 18  # four sequences of up to 60 tokens want 60: preemption is certain
STOP_IDS = range(0, TINY.vocab, 16)
DRAFTS = {
    "ngram": ("ngram", None),
    "the target itself": ("model", 0),
    "another model": ("model", 1),
}


def ran(config: EngineConfig, pages: int = PAGES, stop_ids=(), draft: int | None = None, **sampling):
    """Tokens of every request, and the engine, of a run of the trace; `draft` is the seed of the draft model."""
    drafts = None if draft is None else tiny_model(draft)
    ladders = coarse_ladders(TRACE, CONFIG)  # the same for all, so that programs are shared
    executor = jax_executor(TRACE, config, pages, ladders=ladders, stop_ids=stop_ids, draft=drafts, **sampling)
    engine = virtual_engine(TRACE, config, pages, executor)
    engine.run()
    return {index: list(ids) for index, ids in executor.book.outputs.items()}, engine


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    """Tokens of the trace without speculation, greedy, sampled, and with tokens that end a request."""
    return {
        "greedy": ran(CONFIG)[0],
        "sampled": ran(CONFIG, **SAMPLING)[0],
        "stopped": ran(CONFIG, stop_ids=STOP_IDS, **SAMPLING)[0],
    }


def columns_of(engine, pages: int = PAGES):
    return engine.log.step_columns(pages)


@pytest.mark.parametrize("drafts", DRAFTS)
@pytest.mark.parametrize("how", ["greedy", "sampled", "stopped"])
def test_tokens_are_those_without_speculation(alone, drafts, how):
    name, seed = DRAFTS[drafts]
    config = dataclasses.replace(CONFIG, draft=name, draft_tokens=3)
    sampling = {} if how == "greedy" else SAMPLING
    tokens, engine = ran(config, stop_ids=STOP_IDS if how == "stopped" else (), draft=seed, **sampling)
    assert tokens == alone[how]
    steps, requests = columns_of(engine), engine.log.request_columns()
    assert requests["output_tokens"] == [len(tokens[index]) for index in requests["request"]]
    gained = steps["decode_seqs"].sum() + steps["accepted_tokens"].sum() + len(tokens)  # and a first token for each
    assert gained == sum(map(len, tokens.values()))
    assert steps["drafted_tokens"].sum() > 0
    if drafts == "the target itself" and how != "stopped":
        assert steps["accepted_tokens"].sum() == steps["drafted_tokens"].sum()
    elif drafts == "another model":
        assert steps["accepted_tokens"].sum() < steps["drafted_tokens"].sum()


KNOBS = [
    {"batching": "prefill_first"},
    {"batching": "static", "static_timeout_s": 1e-6},
    {"prefill_chunk_tokens": 3},
    {"allocator": "contiguous"},
]


@pytest.mark.parametrize("drafts", ["ngram", "another model"])
@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: "-".join(map(str, knobs.values())))
def test_tokens_do_not_depend_on_the_other_knobs(alone, knobs, drafts):
    name, seed = DRAFTS[drafts]
    config = dataclasses.replace(CONFIG, draft=name, draft_tokens=3, **knobs)
    assert ran(config, draft=seed, **SAMPLING)[0] == alone["sampled"]


@pytest.mark.parametrize("memory", [{}, {"preemption": "swap"}, {"preemption": "swap", "prefix_cache": "lru"}])
@pytest.mark.parametrize("drafts", ["ngram", "the target itself"])
def test_tokens_survive_preemption(alone, drafts, memory):
    """Also with KV that goes to the host and comes back, and with pages that are found again: both models' pages do."""
    name, seed = DRAFTS[drafts]
    config = dataclasses.replace(CONFIG, draft=name, draft_tokens=3, **memory)
    tokens, engine = ran(config, TIGHT_PAGES, draft=seed, **SAMPLING)
    assert tokens == alone["sampled"]
    if drafts == "the target itself":
        steps = columns_of(engine, TIGHT_PAGES)
        assert steps["accepted_tokens"].sum() == steps["drafted_tokens"].sum()
    assert sum(engine.log.request_columns()["preemptions"]) > 0


def test_what_was_not_drafted_is_not_counted():
    """Rows without a match in their past verify their own token alone, and the record says so."""
    config = dataclasses.replace(CONFIG, draft="ngram", ngram_tokens=8, ngram_least_tokens=8)
    _, engine = ran(config, **SAMPLING)
    steps = columns_of(engine)
    assert steps["drafted_tokens"].sum() == steps["drafted_pairs"].sum() == 0
    assert (steps["sampled"] >= steps["decode_seqs"]).all() and steps["decode_seqs"].sum() > 0


def test_the_padding_of_a_verification_is_counted():
    _, engine = ran(dataclasses.replace(CONFIG, draft="ngram", draft_tokens=3))
    steps = columns_of(engine)
    useful = steps["decode_seqs"] + steps["drafted_tokens"] + steps["prefill_tokens"]
    assert (steps["executed_tokens"] >= useful).all()
    assert set(steps["executed_tokens"].tolist()) <= {8, 16, 32}
    assert (steps["executed_kv_tokens"] >= steps["decode_kv_tokens"] + steps["prefill_kv_tokens"]).all()


def test_a_draft_model_of_another_vocabulary_is_refused():
    model = tiny_model()
    config = dataclasses.replace(CONFIG, draft="model")
    stranger = dataclasses.replace(model, spec=dataclasses.replace(TINY, name="stranger", vocab=999))
    executor = jax_executor(TRACE, CONFIG, PAGES)
    with pytest.raises(ConfigError, match=r"'stranger' has a vocabulary of 999 tokens and 'tiny-llama' one of"):
        speculate(executor, model, config, stranger)
    with pytest.raises(ConfigError, match=r"Experiment\.draft_model"):
        speculate(executor, model, config)


def test_the_steps_budget_must_hold_every_draft():
    with pytest.raises(ConfigError, match=r"max_step_tokens = 32 is below Engine\.max_seqs = 8 x 5"):
        dataclasses.replace(CONFIG, max_seqs=8, draft="ngram")


def test_nothing_compiles_after_warm_up(caplog):
    trace = lengths_trace([5, 9, 3, 17], [12, 12, 9, 7], np.zeros(4))
    config = dataclasses.replace(CONFIG, max_seqs=3, draft="model", draft_tokens=2)  # shapes that no other test has
    executor = jax_executor(trace, config, PAGES, draft=tiny_model(1), **SAMPLING)
    programs = list(executor.warm_up())
    assert len(programs) == executor.calls.programs == len(set(programs))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        virtual_engine(trace, config, PAGES, executor).run()
    assert not [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()]


def test_shared_noise_makes_guesses_right_that_other_noise_would_not():
    """The draft model draws with the target's key. With a key of its own it agrees less often, and changes nothing."""
    ladders, config = coarse_ladders(TRACE, CONFIG), dataclasses.replace(CONFIG, draft="model", draft_tokens=3)
    accepted, tokens = [], []
    for key in (None, jax.random.key(99)):
        executor = jax_executor(TRACE, config, PAGES, ladders=ladders, draft=tiny_model(1), temperature=1.0)
        if key is not None:
            executor.calls.drafter._key = key
        engine = virtual_engine(TRACE, config, PAGES, executor)
        engine.run()
        accepted.append(columns_of(engine)["accepted_tokens"].sum())
        tokens.append(executor.book.outputs)
    assert tokens[0] == tokens[1]
    assert accepted[0] > 3 * max(1, accepted[1])
