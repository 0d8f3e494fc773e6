"""Every knob beside every other: whatever the schedule, a request's greedy tokens are those of a dense model alone.

A schedule draws its knobs, its pool, its load and its aborts; the real executor runs it in float32 on a virtual clock.
Programs are compiled once for all schedules.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoserve.engine.config import EngineConfig
from nanoserve.executors.arrays import Ladders
from nanoserve.executors.jax_build import LoadedModel, load_model
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.tokens import TokenBook
from nanoserve.weights.random import RandomTensors
from tests.executors import dense
from tests.executors.factories import F32, TINY, jax_executor, lengths_trace, virtual_engine

SPEC = dataclasses.replace(TINY, tied_embeddings=False)
DRAFT = dataclasses.replace(SPEC, name="draft", layers=1)
SCHEDULES = 500
SLOTS, PAGE_TOKENS, PAGES, BUDGET = 5, 4, 64, 24
MOST_REQUESTS, LONGEST_PROMPT, MOST_OUTPUT = 8, 36, 10
PROMPTS, STEMS = 30, 3
LEAST_LEAD = 1e-4  # of a dense token over its runner-up: far above what float32 loses
MOST_PLANS = 5000
LADDERS = Ladders(
    decode_rows=(SLOTS,),
    prefill_tokens=(BUDGET,),
    prefill_rows=SLOTS,
    table_pages=-(-(LONGEST_PROMPT + MOST_OUTPUT) // PAGE_TOKENS),
    loop_steps=4,
)

KNOBS = st.fixed_dictionaries(
    {
        "batching": st.sampled_from(["mixed", "prefill_first", "static"]),
        "static_timeout_s": st.sampled_from([1e-6, 1e-2]),
        "prefill_chunk_tokens": st.sampled_from([None, 3, 8]),
        "chunking": st.sampled_from(["fixed", "adaptive"]),
        "preemption": st.sampled_from(["recompute", "swap", "cheaper"]),
        "when_full": st.sampled_from(["wait", "wait", "fail"]),
        "host_pages": st.sampled_from([None, 6]),
        "prefix_cache": st.sampled_from(["off", "lru", "cost"]),
        "draft": st.sampled_from(["none", "ngram", "model"]),
        "policy": st.sampled_from(["fcfs", "shortest_first", "priority", "fair_share"]),
        "victim": st.sampled_from(["youngest", "least_progress"]),
        "max_seqs": st.sampled_from([1, 3, SLOTS]),
        "max_horizon_steps": st.sampled_from([1, LADDERS.loop_steps]),
        "interval_s": st.sampled_from([0.0, 1e-3]),
    }
)
JOB = st.tuples(
    st.integers(0, PROMPTS - 1),  # which prompt
    st.integers(1, MOST_OUTPUT),
    st.sampled_from([0.0, 0.0, 1e-4, 1e-3, 1e-2]),  # seconds after the one before
    st.sampled_from([None, None, None, 1, 4, 9]),  # the plan after which it is aborted, if it is still there
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a dense model says after a prompt."""

    prompt: list[int]
    tokens: list[int]


@functools.cache
def answers() -> tuple[Answer, ...]:
    """Prompts that share their beginnings, and the dense continuations, none of which is a close call."""
    random, weights, found = np.random.default_rng(0), RandomTensors(SPEC, 0, np.float32), []
    stems = random.integers(SPEC.vocab, size=(STEMS, LONGEST_PROMPT))
    while len(found) < PROMPTS:
        shared, length = random.integers(0, LONGEST_PROMPT), random.integers(1, LONGEST_PROMPT + 1)
        stem = stems[random.integers(STEMS)][: min(shared, length)]
        prompt = [*stem.tolist(), *random.integers(SPEC.vocab, size=length - len(stem)).tolist()]
        tokens, lead = dense.greedy(SPEC, weights, prompt, MOST_OUTPUT)
        if lead > LEAST_LEAD:
            found.append(Answer(prompt, tokens))
    return tuple(found)


@functools.cache
def models() -> tuple[LoadedModel, LoadedModel]:
    """Target, and a draft that is its first layer: it is right often enough to be kept now and then."""
    return tuple(load_model(spec, RandomTensors(spec, 0, np.float32), F32) for spec in (SPEC, DRAFT))


@functools.cache
def executor(draft: str) -> JaxExecutor:
    """The real executor with a drafter, and with pages that can be moved to the host."""
    config = config_of({"draft": draft, "preemption": "swap", "max_seqs": SLOTS})
    trace = lengths_trace([LONGEST_PROMPT] * MOST_REQUESTS, [MOST_OUTPUT] * MOST_REQUESTS, [0.0] * MOST_REQUESTS)
    target, small = models()
    made = jax_executor(trace, config, PAGES, model=target, ladders=LADDERS, draft=small if draft == "model" else None)
    list(made.warm_up())
    return made


def config_of(knobs: dict) -> EngineConfig:
    return EngineConfig(
        max_step_tokens=BUDGET,
        page_tokens=PAGE_TOKENS,
        draft_tokens=2,
        free_page_watermark=0.0,
        max_context_tokens=LONGEST_PROMPT + MOST_OUTPUT,
        **knobs,
    )


def plans_of(engine, aborts: dict[int, list[int]]) -> Iterator[int]:
    """Runs an engine plan by plan, aborting on the way."""

    def should_stop() -> bool:
        for index in aborts.get(plans[0], []):
            if index in engine.scheduler.sequences:
                engine.abort(index, engine.clock.now(), "the test wants it")
        plans[0] += 1
        return plans[0] > MOST_PLANS

    plans = [0]
    engine.run(should_stop=should_stop)
    yield plans[0]


@settings(max_examples=SCHEDULES, suppress_health_check=list(HealthCheck))
@given(
    knobs=KNOBS,
    jobs=st.lists(JOB, min_size=1, max_size=MOST_REQUESTS),
    pages=st.integers(LADDERS.table_pages, PAGES),
    stop=st.one_of(st.none(), st.tuples(st.integers(0, PROMPTS - 1), st.integers(0, MOST_OUTPUT - 1))),
)
def test_tokens_are_those_of_a_dense_model_under_every_knob(knobs, jobs, pages, stop):
    config, runner, known = config_of(knobs), executor(knobs["draft"]), answers()
    asked = [known[prompt] for prompt, *_ in jobs]
    stop_ids = {known[stop[0]].tokens[stop[1]]} if stop else set()
    trace = lengths_trace(
        [len(answer.prompt) for answer in asked],
        [tokens for _, tokens, *_ in jobs],
        np.cumsum([gap for _, _, gap, _ in jobs]),
    )
    runner.book = TokenBook(lambda index: asked[index].prompt, stop_ids)
    runner.arrays.forget_tables()
    engine = virtual_engine(trace, config, pages, runner, SPEC)
    aborts: dict[int, list[int]] = {}
    for index, (*_, plan) in enumerate(jobs):
        if plan is not None:
            aborts.setdefault(plan, []).append(index)
    (plans,) = plans_of(engine, aborts)
    assert plans <= MOST_PLANS, "no progress"

    outputs, reasons = runner.book.outputs, engine.log.request_columns()["finish_reason"]
    for index, (answer, (_, tokens, *_)) in enumerate(zip(asked, jobs, strict=True)):
        expected = until_stop(answer.tokens[:tokens], stop_ids)
        if reasons[index] in ("aborted", "out_of_memory"):
            got = outputs.get(index, [])
            assert got == expected[: len(got)]
        else:
            assert outputs[index] == expected
    pool = engine.scheduler.pool
    assert pool.free_count == pool.num_pages and not engine.scheduler.sequences


def until_stop(tokens: list[int], stop_ids: set[int]) -> list[int]:
    """Tokens up to and including the first that stops."""
    place = next((place for place, token in enumerate(tokens) if token in stop_ids), len(tokens) - 1)
    return tokens[: place + 1]


def test_the_dense_model_and_the_drafts_are_worth_comparing_with():
    """Prompts share pages, continuations vary, and both drafters are right sometimes and wrong sometimes."""
    assert len({tuple(answer.prompt[:PAGE_TOKENS]) for answer in answers()}) < PROMPTS
    assert len({tuple(answer.tokens) for answer in answers()}) > PROMPTS / 2


@pytest.mark.parametrize("draft", ["ngram", "model"])
def test_drafts_are_sometimes_kept_and_sometimes_not(draft):
    runner = executor(draft)
    trace = lengths_trace([len(a.prompt) for a in answers()[:8]], [MOST_OUTPUT] * 8, [0.0] * 8)
    runner.book = TokenBook(lambda index: answers()[index].prompt)
    runner.arrays.forget_tables()
    engine = virtual_engine(trace, config_of({"draft": draft, "max_seqs": SLOTS}), PAGES, runner, SPEC)
    engine.run()
    steps = engine.log.step_columns(PAGES)
    assert 0 < steps["accepted_tokens"].sum() < steps["drafted_tokens"].sum()
