"""How steps are made up: mixed, prefill first, static; and when the engine looks at what arrived."""

import pytest

from nanoserve.engine.types import Kind, to_seconds
from tests.engine.factories import FIXED_TICKS, Job, make_engine

TIMEOUT_TICKS = 50 * FIXED_TICKS


def run(jobs, **config):
    engine = make_engine(jobs, **{"static_timeout_s": to_seconds(TIMEOUT_TICKS)} | config)
    engine.run()
    return engine


def kinds(engine) -> list[str]:
    return [plan[1] for plan in engine.executor.plans]


ARRIVALS = [Job(index * 3 * FIXED_TICKS, 30, 20) for index in range(12)]


def test_prefill_first_never_mixes_and_decodes_when_nothing_is_left_to_prefill():
    mixed, apart = run(ARRIVALS), run(ARRIVALS, batching="prefill_first")
    assert Kind.MIXED in kinds(mixed)
    assert set(kinds(apart)) == {Kind.PREFILL, Kind.DECODE}
    assert apart.log.request_columns()["output_tokens"] == [20] * 12


def test_prefill_first_stops_those_who_decode_for_the_whole_prompt():
    """In chunks of 5, a prompt of 60 costs who decodes one gap of twelve steps, where mixing costs twelve of one."""
    jobs = [Job(0, 5, 40), Job(10 * FIXED_TICKS, 60, 1)]
    plans = run(jobs, batching="prefill_first", prefill_chunk_tokens=5).executor.plans
    chunks = [place for place, plan in enumerate(plans) if plan[1] is Kind.PREFILL and plan[3][0][0] == 1]
    assert chunks == list(range(chunks[0], chunks[0] + 12))


def test_a_static_batch_waits_until_it_is_full():
    jobs = [Job(index * FIXED_TICKS, 4, 5) for index in range(4)]
    columns = run(jobs, batching="static", max_seqs=4).log.request_columns()
    assert set(columns["admitted_s"]) == {to_seconds(3 * FIXED_TICKS)}


def test_a_static_batch_that_does_not_fill_starts_when_the_oldest_has_waited_long_enough():
    jobs = [Job(7, 4, 5), Job(FIXED_TICKS, 4, 5)]
    columns = run(jobs, batching="static", max_seqs=4).log.request_columns()
    assert set(columns["admitted_s"]) == {to_seconds(7 + TIMEOUT_TICKS)}


def test_a_static_batch_leaves_as_one_and_nobody_joins_it():
    outputs = [3, 9, 30, 1, 5, 8]
    engine = run([Job(0, 4, tokens) for tokens in outputs], batching="static", max_seqs=3)
    columns = engine.log.request_columns()
    assert columns["output_tokens"] == outputs
    assert len(set(columns["finish_s"][:3])) == len(set(columns["finish_s"][3:])) == 1
    assert columns["finish_s"][0] <= min(columns["admitted_s"][3:])


def test_members_that_are_done_are_padding_until_the_batch_ends():
    engine = run([Job(0, 4, tokens) for tokens in (3, 9, 30)], batching="static", max_seqs=3)
    steps = engine.log.step_columns(64)
    decode = steps["kind"] == "decode"
    assert (steps["running"] == 3).all()
    assert steps["decode_seqs"][decode].tolist() == [3, 2, 1]
    pages = steps["pages_used"][decode]
    assert (pages[1:] >= pages[:-1]).all()  # nothing is given back before the end


def test_a_static_batch_prefills_over_several_steps_before_anybody_decodes():
    engine = run([Job(0, 60, 3) for _ in range(4)], batching="static", max_seqs=4, prefill_chunk_tokens=40)
    assert kinds(engine) == [Kind.PREFILL] * 6 + [Kind.DECODE]


def test_under_pressure_the_pages_of_those_who_are_done_go_before_anybody_is_preempted():
    jobs = [Job(0, 8, 1), Job(0, 8, 40)]
    columns = run(jobs, batching="static", max_seqs=2, num_pages=12).log.request_columns()
    assert columns["output_tokens"] == [1, 40]
    assert columns["preemptions"] == [0, 0]


def test_when_the_last_of_a_static_batch_is_aborted_the_others_have_their_answer():
    engine = make_engine([Job(0, 4, 2), Job(0, 4, 50)], batching="static", max_seqs=2)
    scheduler = engine.scheduler
    engine.run(should_stop=lambda: engine.log.plan_count() == 2)
    assert engine.log.request_columns()["finish_reason"] == ["aborted", "aborted"]
    engine = make_engine([Job(0, 4, 2), Job(0, 4, 50)], batching="static", max_seqs=2)
    scheduler = engine.scheduler
    for row, at in engine.load.take(0):
        scheduler.add(engine._request_of(row, at), at)
    for _ in range(2):
        plan = scheduler.plan(0, lambda counts, now: 1)
        assert scheduler.apply(plan, engine.executor.submit(plan).result(), 0, 1) == []
    scheduler.abort(1, 1, "asked to")
    assert scheduler.expire(1) == [0]
    assert engine.log.request_columns()["finish_reason"] == ["length", "aborted"]
    assert scheduler.pool.used_count == 0


def test_continuous_batching_serves_at_least_twice_what_static_does():
    """Outputs of very different lengths, which is what a chat service has; the same load, the time it takes."""
    jobs = [Job(0, 8, 100 if index % 8 == 0 else 5) for index in range(64)]
    took = {name: run(jobs, batching=name, num_pages=400).clock.now() for name in ("mixed", "static")}
    assert took["static"] >= 2 * took["mixed"]


@pytest.mark.parametrize("interval", [1, 5, 11])
def test_while_something_runs_arrivals_are_seen_at_multiples_of_the_interval(interval):
    every = interval * FIXED_TICKS
    jobs = [Job(0, 4, 200), *(Job(i * 3 * FIXED_TICKS + 17, 4, 5) for i in range(1, 20))]
    engine = run(jobs, interval_s=to_seconds(every), max_horizon_steps=1)
    starts = engine.log.step_columns(64)["start_s"].tolist()
    columns = engine.log.request_columns()
    for sent, arrival in zip(columns["sent_s"], columns["arrival_s"], strict=True):
        grid = -(-int(arrival * 2**60) // every) * every
        assert sent == min(start for start in starts if start >= to_seconds(grid))


def test_an_idle_engine_does_not_wait_for_the_interval():
    engine = run([Job(12_345, 4, 5)], interval_s=1.0)
    assert engine.log.request_columns()["sent_s"] == [to_seconds(12_345)]
