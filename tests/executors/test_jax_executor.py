"""The real executor: the simulator's plans, and the same tokens whatever the schedule."""

import dataclasses

import numpy as np
import pytest

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.engine import Engine
from nanoserve.engine.types import Plan
from nanoserve.executors.jax_build import ladders_for
from tests.executors.factories import jax_executor, lengths_trace, mixed_trace, virtual_engine

CONFIG = EngineConfig(
    max_seqs=6, max_step_tokens=32, page_tokens=4, free_page_watermark=0.0, max_horizon_steps=8, max_context_tokens=128
)
PAGES = 60  # six sequences of up to 88 tokens want 132: preemption is certain


def plans_of(engine: Engine) -> list[tuple]:
    """Every plan as a value, rows and page ids included."""
    seen = []
    submit = engine.executor.submit

    def spy(plan: Plan):
        rows = [(r.index, r.slot, r.start, r.new_tokens, r.samples, tuple(r.pages), r.generated) for r in plan.rows()]
        seen.append((plan.step, plan.kind, plan.horizon, plan.counts, rows))
        return submit(plan)

    engine.executor.submit = spy
    engine.run()
    return seen


def test_real_and_simulated_engines_make_the_same_plans_given_the_same_step_times():
    trace = mixed_trace(30, seed=1, rate_rps=4000.0)
    real = plans_of(virtual_engine(trace, CONFIG, PAGES, jax_executor(trace, CONFIG, PAGES)))
    simulated = plans_of(virtual_engine(trace, CONFIG, PAGES, None))
    assert real == simulated
    kinds = {plan[1].value for plan in real}
    assert kinds == {"prefill", "decode", "mixed"} and max(plan[2] for plan in real) > 1


@pytest.fixture(scope="module")
def undisturbed() -> tuple:
    """Sampled tokens of twelve requests that ran one at a time on a pool without end."""
    trace = mixed_trace(12, seed=2, rate_rps=1e6)
    config = EngineConfig(max_seqs=1, max_step_tokens=64, page_tokens=16, max_horizon_steps=1, max_context_tokens=128)
    return trace, _tokens(trace, config, 100)


def _tokens(trace, config, pages) -> dict[int, list[int]]:
    executor = jax_executor(trace, config, pages, temperature=0.8, top_k=40, top_p=0.95, min_p=0.01)
    engine = virtual_engine(trace, config, pages, executor)
    engine.run()
    assert engine.log.request_columns()["finish_reason"] == ["length"] * len(trace)
    return dict(executor.book.outputs)


@pytest.mark.parametrize(
    ("pages", "chunk", "horizon", "page_tokens"), [(30, None, 8, 4), (60, 5, 1, 4), (200, 1, 3, 1), (40, 16, 8, 16)]
)
def test_sampled_tokens_do_not_depend_on_the_schedule(undisturbed, pages, chunk, horizon, page_tokens):
    trace, expected = undisturbed
    config = EngineConfig(
        max_seqs=6,
        max_step_tokens=32,
        prefill_chunk_tokens=chunk,
        page_tokens=page_tokens,
        max_horizon_steps=horizon,
        free_page_watermark=0.0,
        max_context_tokens=128,
    )
    assert _tokens(trace, config, pages) == expected


@pytest.mark.parametrize(
    "knobs",
    [
        {"batching": "prefill_first", "policy": "shortest_first", "victim": "least_progress"},
        {"batching": "static", "static_timeout_s": 1e-6},
        {"batching": "static", "allocator": "contiguous", "policy": "fair_share"},
        {"allocator": "contiguous", "chunking": "adaptive", "decodes_per_prompt": 1.0, "interval_s": 1e-3},
    ],
)
def test_sampled_tokens_do_not_depend_on_the_knobs(undisturbed, knobs):
    trace, expected = undisturbed
    config = EngineConfig(
        max_seqs=6,
        max_step_tokens=32,
        page_tokens=4,
        max_horizon_steps=8,
        free_page_watermark=0.0,
        max_context_tokens=128,
        **knobs,
    )
    assert _tokens(trace, config, 30) == expected


def test_the_padding_of_a_static_batch_is_executed_and_counted_in_both_executors():
    trace = lengths_trace([5, 9, 3, 4], [2, 20, 20, 20], [0.0] * 4)
    config = dataclasses.replace(CONFIG, max_seqs=4, batching="static")
    ladders = dataclasses.replace(ladders_for(trace, config), decode_rows=(3, 4))
    real = virtual_engine(trace, config, PAGES, jax_executor(trace, config, PAGES, ladders=ladders))
    simulated = virtual_engine(trace, config, PAGES, None)
    for engine in (real, simulated):
        engine.run()
        steps = engine.log.step_columns(PAGES)
        decode = steps["kind"] == "decode"
        assert steps["decode_seqs"][decode].min() == 3
        assert (steps["executed_tokens"][decode] == 4 * steps["steps"][decode]).all()


def test_logprobs_are_those_of_the_generated_tokens():
    trace = lengths_trace([5, 9], [7, 3], [0.0, 0.0])
    executor = jax_executor(trace, CONFIG, PAGES)
    virtual_engine(trace, CONFIG, PAGES, executor).run()
    for index, tokens in executor.book.outputs.items():
        logprobs = executor.book.logprobs[index]
        assert len(logprobs) == len(tokens) == trace.output_tokens[index]
        assert all(-np.log(256) - 20 < value <= 0 for value in logprobs)


def test_padding_is_counted():
    trace = lengths_trace([5, 9, 3], [7, 3, 6], [0.0, 0.0, 0.0])
    executor = jax_executor(trace, CONFIG, PAGES, ladders=ladders_for(trace, CONFIG))
    engine = virtual_engine(trace, CONFIG, PAGES, executor)
    engine.run()
    steps = engine.log.step_columns(PAGES)
    useful = steps["steps"] * steps["decode_seqs"] + steps["prefill_tokens"]
    assert (steps["executed_tokens"] >= useful).all()
    decode = steps["kind"] == "decode"
    rungs = np.array(executor.ladders.decode_rows)
    expected = [rungs[rungs >= rows].min() * k for rows, k in zip(steps["decode_seqs"], steps["steps"], strict=True)]
    assert steps["executed_tokens"][decode].tolist() == np.array(expected)[decode].tolist()
    assert (steps["executed_kv_tokens"] >= steps["decode_kv_tokens"] + steps["prefill_kv_tokens"]).all()


def test_submitting_a_plan_waits_for_nothing_that_the_device_computes(monkeypatch):
    trace = lengths_trace([5, 9], [12, 12], [0.0, 0.0])
    executor = jax_executor(trace, CONFIG, PAGES)
    submit, fetched, array = executor.submit, [], type(executor.state.last_tokens)

    def submitted(plan: Plan):
        with monkeypatch.context() as patch:
            for name in ("block_until_ready", "__array__", "_value"):
                patch.setattr(array, name, lambda self, *_, name=name, **__: fetched.append(name))
            return submit(plan)

    executor.submit = submitted
    virtual_engine(trace, CONFIG, PAGES, executor).run()
    assert not fetched
    assert [len(tokens) for tokens in executor.book.outputs.values()] == [12, 12]
