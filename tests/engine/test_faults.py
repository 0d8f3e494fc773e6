"""Planted leaks: the pool counts what was lost, nobody holds it, and a run comes to its end all the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.engine.faults import Leak
from nanoserve.engine.types import to_seconds
from tests.engine.factories import Job, held_pages, knobs_strategy, make_engine
from tests.engine.test_engine import jobs_strategy

LEAKS = [Leak(1, 1), Leak(2, 3), Leak(5, 2)]


def run(load: list[Job], leak: Leak | None, **options):
    engine = make_engine(load, leak=leak, **options)
    engine.run()
    return engine


@pytest.mark.parametrize("allocator", ["paged", "contiguous"])
def test_pages_in_use_after_a_run_are_those_that_leaked(allocator: str):
    engine = run([Job(index * 10**8, 9, 4) for index in range(20)], Leak(3, 2), allocator=allocator)
    assert engine.scheduler.pool.used_count == engine.scheduler.memory.leaking.lost_pages == 6 * 2
    used = engine.log.step_columns(64)["pages_used"]
    assert used[0] == 3 and used[-1] == 12 + 3
    assert engine.log.request_columns()["finish_reason"] == ["length"] * 20


def test_a_request_loses_no_more_than_it_has():
    engine = run([Job(0, 3, 1), Job(10**8, 3, 1)], Leak(1, 5))
    assert engine.scheduler.pool.used_count == engine.scheduler.memory.leaking.lost_pages == 2


@pytest.mark.parametrize("batching", ["mixed", "prefill_first", "static"])
@pytest.mark.parametrize("allocator", ["paged", "contiguous"])
def test_an_engine_whose_pages_have_leaked_away_ends_who_can_never_be_served(batching: str, allocator: str):
    options = {"batching": batching, "allocator": allocator, "num_pages": 8}
    engine = run([Job(index * 10**8, 9, 9) for index in range(20)], Leak(1, 1), **options)
    columns = engine.log.request_columns()
    served = 4 if allocator == "paged" else 1  # the lost page lies in the middle: no run of five is left
    assert columns["finish_reason"] == ["length"] * served + ["out_of_memory"] * (20 - served)
    assert "0 sequences hold 0, 0 kept sessions hold 0; largest holder none with 0" in columns["detail"][-1]


@pytest.mark.parametrize("batching", ["mixed", "prefill_first", "static"])
def test_those_who_can_never_be_served_all_end_however_many_wait(batching: str):
    """More than Python would call one in another."""
    load = [Job(index, 9, 9) for index in range(1200)]
    engine = run(load, Leak(1, 1), num_pages=8, batching=batching, static_timeout_s=0.0, max_seqs=1)
    columns = engine.log.request_columns()
    assert columns["finish_reason"] == ["length"] * 4 + ["out_of_memory"] * 1196


@given(jobs_strategy, st.sampled_from(LEAKS), st.sampled_from([20, 40]), knobs_strategy)
@settings(max_examples=80)
def test_every_request_leaves_once_however_much_leaks(load, leak, num_pages, knobs):
    knobs |= {"static_timeout_s": to_seconds(20_000_000), "deadline_s": to_seconds(50_000_000)}
    engine = run(load, leak, num_pages=num_pages, **knobs)
    reasons = engine.log.request_columns()["finish_reason"]
    assert len(reasons) == len(load) and set(reasons) <= {"length", "refused", "out_of_memory"}
    assert sorted(engine.load.returned) == list(range(len(load)))
    assert held_pages(engine.scheduler) == 0


@given(jobs_strategy, st.sampled_from(LEAKS), knobs_strategy)
@settings(max_examples=60)
def test_a_leak_does_not_depend_on_how_steps_are_gathered(load, leak, knobs):
    knobs |= {"static_timeout_s": to_seconds(20_000_000), "deadline_s": to_seconds(50_000_000)}
    together = run(load, leak, num_pages=40, **knobs)
    single = run(load, leak, num_pages=40, max_horizon_steps=1, **knobs)
    assert list(together.log.event_lines()) == list(single.log.event_lines())
    assert together.log.request_columns() == single.log.request_columns()
