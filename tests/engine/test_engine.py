"""The loop: horizons change nothing but the number of plans, runs repeat, and every request is accounted for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.types import StepResult, to_seconds, to_ticks
from nanoserve.specs.errors import ConfigError
from tests.engine.factories import Job, LinearExecutor, held_pages, knobs_strategy, make_engine

jobs_strategy = st.lists(
    st.builds(
        Job,
        st.integers(0, 400_000_000),
        st.integers(1, 60),
        st.integers(1, 60),
        client=st.integers(0, 2),
        priority=st.integers(0, 2),
        session=st.sampled_from([None, 0, 1, 2]),
    ),
    min_size=1,
    max_size=25,
)
SUMMED = (
    "steps",
    "decode_kv_tokens",
    "decode_window_tokens",
    "prefill_tokens",
    "prefill_pairs",
    "sampled",
    "preemptions",
)


def _run(jobs, **options):
    engine = make_engine(jobs, **options)
    engine.run()
    return engine


def _events(engine) -> list[str]:
    return list(engine.log.event_lines())


@given(
    jobs_strategy,
    st.sampled_from([30, 64]),
    st.sampled_from([None, 5]),
    st.sampled_from([None, 11]),
    knobs_strategy,
)
@settings(max_examples=150)
def test_a_horizon_of_k_gives_the_records_of_k_single_steps(jobs, num_pages, chunk, window, knobs):
    options = {"num_pages": num_pages, "prefill_chunk_tokens": chunk, "window_tokens": window, **knobs}
    options |= {"static_timeout_s": to_seconds(20_000_000), "deadline_s": to_seconds(50_000_000)}
    together, single = _run(jobs, **options), _run(jobs, max_horizon_steps=1, **options)
    assert _events(together) == _events(single)
    long, short = together.log.step_columns(num_pages), single.log.step_columns(num_pages)
    for name in SUMMED:
        assert long[name].sum() == short[name].sum(), name
    assert long["duration_s"].sum() == pytest.approx(short["duration_s"].sum(), rel=1e-9)
    assert together.clock.now() == single.clock.now()
    assert together.log.request_columns() == single.log.request_columns()


@given(jobs_strategy)
@settings(max_examples=20)
def test_the_same_input_gives_the_same_events_byte_for_byte(jobs):
    assert _events(_run(jobs, num_pages=30)) == _events(_run(jobs, num_pages=30))


@given(jobs_strategy, st.integers(1, 40), knobs_strategy)
@settings(max_examples=150)
def test_every_request_sent_leaves_once_and_the_pool_is_whole(jobs, num_pages, knobs):
    knobs |= {"static_timeout_s": to_seconds(20_000_000), "deadline_s": to_seconds(50_000_000)}
    engine = _run(jobs, num_pages=num_pages, timeout_s=to_seconds(150_000_000), **knobs)
    reasons = engine.log.request_columns()["finish_reason"]
    assert len(reasons) == len(jobs)
    assert set(reasons) <= {"length", "refused", "timed_out", "out_of_memory"}
    assert held_pages(engine.scheduler) == 0
    refused = {i for i, reason in enumerate(reasons) if reason == "refused"}
    assert sorted(engine.executor.released) == sorted(set(range(len(jobs))) - refused)
    assert sorted(engine.load.returned) == list(range(len(jobs)))


def test_the_idle_engine_jumps_to_the_next_arrival():
    engine = _run([Job(5, 3, 1), Job(10**12, 3, 1)])
    columns = engine.log.step_columns(64)
    assert columns["start_s"].tolist() == [to_seconds(5), to_seconds(10**12)]


def test_a_stop_token_ends_a_request_within_a_horizon_at_its_own_time():
    stopping = _run([Job(0, 4, 40)], executor=LinearExecutor(stops={0: 8}))
    single = _run([Job(0, 4, 40)], executor=LinearExecutor(stops={0: 8}), max_horizon_steps=1)
    assert stopping.executor.plans[1][2] == 39  # one plan for all the rest
    assert stopping.log.request_columns() == single.log.request_columns()
    assert stopping.log.request_columns()["output_tokens"] == [8]
    assert stopping.log.request_columns()["finish_reason"] == ["stop"]


def test_preemption_recomputes_and_still_delivers_every_token():
    engine = _run([Job(0, 8, 30), Job(0, 8, 30), Job(0, 8, 30)], num_pages=14)
    columns = engine.log.request_columns()
    assert columns["output_tokens"] == [30, 30, 30]
    assert sum(columns["preemptions"]) > 0
    assert columns["preemptions"][0] == 0  # the oldest is never the victim
    stalled = np.array(columns["max_stall_s"]) > 0
    assert stalled.tolist() == [p > 0 for p in columns["preemptions"]]


def test_a_run_that_is_stopped_aborts_what_is_left_and_keeps_its_records():
    engine = make_engine([Job(0, 4, 40), Job(0, 4, 40)], max_horizon_steps=1)
    engine.run(should_stop=lambda: engine.log.plan_count() == 5)
    columns = engine.log.request_columns()
    assert columns["finish_reason"] == ["aborted", "aborted"]
    assert columns["output_tokens"] == [5, 5]
    assert engine.scheduler.pool.used_count == 0
    assert len(engine.log.step_columns(64)["step"]) == 5


def test_refusals_say_what_does_not_fit():
    engine = _run([Job(0, 90, 20), Job(0, 30, 30), Job(0, 8, 2)], num_pages=10, max_context_tokens=100)
    details = engine.log.request_columns()["detail"]
    assert "= 110 tokens exceed the context of 100" in details[0]
    assert "need 15 pages of 4; the whole pool has 10" in details[1]
    assert details[2] == ""


@given(st.integers(1, 2**70), st.integers(2, 50), st.integers(0, 2**40))
def test_step_times_inside_a_horizon_sum_to_its_duration(first, horizon, growth):
    total = horizon * first + growth * horizon * (horizon - 1) // 2
    result = StepResult(total, first)
    assert result.ticks_after(horizon, horizon) == total
    assert result.ticks_after(1, horizon) == first
    assert result.ticks_after(2, horizon) == 2 * first + growth


@given(st.floats(0, 1e7))
def test_ticks_keep_seconds(seconds):
    assert abs(to_seconds(to_ticks(seconds)) - seconds) <= 2**-60


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_seqs", 0), ("page_tokens", -1), ("free_page_watermark", 1.0), ("hbm_utilization", 0.0), ("timeout_s", 0.0)],
)
def test_limits_that_make_no_sense_are_named(field, value):
    with pytest.raises(ConfigError, match=f"Engine.{field}"):
        EngineConfig(**{field: value})


def test_a_budget_below_the_slots_is_refused():
    with pytest.raises(ConfigError, match=r"below Engine\.max_seqs"):
        EngineConfig(max_seqs=8, max_step_tokens=4)


def test_objects_that_every_plan_passes_have_attributes_that_are_found_fast():
    """CPython 3.12 keeps up to 29 attributes of an object in a layout that it shares; beyond, each is looked up."""
    engine = make_engine([Job(0, 5, 3)])
    passed = engine, engine.scheduler, engine.scheduler.memory, engine.scheduler.cohort, engine.log, engine.executor
    assert max(len(vars(one)) for one in passed) < 30
