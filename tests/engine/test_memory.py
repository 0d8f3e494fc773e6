"""What admission counts, what is learnt, what is called off; and requests that go on in another engine."""

import pytest

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.log import RunLog
from nanoserve.engine.memory import KvFacts, KvMemory
from nanoserve.engine.scheduler import Scheduler
from nanoserve.engine.sequence import Sequence
from nanoserve.engine.types import Arrived, Kind, MoveKind, Request, StepResult
from nanoserve.specs.errors import ConfigError
from tests.engine.factories import Job, make_engine

SAME = KvFacts(page_keys=lambda index, tokens: range(tokens // 4))
"""All requests hold the same."""


def memory(num_pages: int = 16, facts: KvFacts = SAME, **config) -> KvMemory:
    return KvMemory(EngineConfig(**{"page_tokens": 4, "prefix_cache": "lru", **config}), num_pages, facts)


def sequence(index: int, prompt_tokens: int, output_tokens: int = 5) -> Sequence:
    request = Request(index=index, arrival_ticks=0, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    return Sequence(request, prefill_target=prompt_tokens)


def prefilled(kv: KvMemory, index: int, prompt_tokens: int) -> Sequence:
    """A sequence whose whole prompt is written, and which has a token."""
    one = sequence(index, prompt_tokens)
    kv.start(one)
    kv.grow(one, prompt_tokens - one.kv_tokens)
    one.kv_tokens, one.generated = prompt_tokens, 1
    kv.learn(one)
    return one


def test_pages_that_others_hold_cost_nothing_and_cached_ones_cost_a_free_page():
    kv = memory()
    first = prefilled(kv, 0, 12)
    assert kv.pages_to_start(sequence(1, 14)) == 4 - 3
    kv.give_back(first)
    assert kv.pages_to_start(sequence(1, 14)) == 4
    assert kv.start(sequence(1, 14)) == 12
    assert kv.pool.free_count == 16 - 3


@pytest.mark.parametrize(("prompt_tokens", "found"), [(12, 8), (13, 12), (4, 0), (5, 4), (1, 0)])
def test_the_last_token_is_never_served_from_the_cache(prompt_tokens, found):
    kv = memory()
    prefilled(kv, 0, 16)
    again = sequence(1, prompt_tokens)
    assert kv.start(again) == again.kv_tokens == found < prompt_tokens
    assert kv.cached_tokens(again.request) == found


def test_tokens_that_do_not_count_are_not_learnt():
    kv = memory()
    one = prefilled(kv, 0, 6)
    kv.grow(one, 10)
    one.kv_tokens, one.generated = 16, 3  # a stop token ended it after three of eleven
    kv.give_back(one)
    assert kv.cached_tokens(sequence(1, 17).request) == 8


def test_kv_that_never_came_is_neither_lost_nor_learnt():
    kv = memory(preemption="swap")
    one = prefilled(kv, 0, 8)
    assert kv.set_aside(one)
    kv.give_back(one)
    assert [move.kind for move in kv.take_moves()] == [MoveKind.OUT]
    assert kv.host_pages_used == 2
    kv.pool.alloc(14)
    kv.pool.alloc(2)  # the cached pages are gone
    kv.pool.free(list(range(16)))
    kv.start(one)
    assert kv.host_pages_used == 0 and len(one.pages) == 2
    assert kv.set_aside(one)  # in the same plan: the move back is called off
    kv.give_back(one)
    assert kv.take_moves() == () and kv.host_pages_used == 2 and one.returns is MoveKind.IN
    assert kv.pool.used_count == 0 and kv.cached_tokens(sequence(1, 9).request) == 0


def test_a_victim_that_finds_the_host_full_is_recomputed():
    kv = memory(preemption="swap", host_pages=3)
    first, second = prefilled(kv, 0, 8), prefilled(kv, 1, 8)
    assert kv.set_aside(first) and not kv.set_aside(second)
    kv.forget(first)
    assert kv.set_aside(second)


def test_the_cheaper_way_is_asked_for():
    facts = KvFacts(swap_is_cheaper=lambda tokens: tokens > 6)
    kv = memory(facts=facts, prefix_cache="off", preemption="cheaper")
    assert [kv.set_aside(prefilled(kv, index, tokens)) for index, tokens in enumerate((6, 7))] == [False, True]


@pytest.mark.parametrize(
    ("config", "field"),
    [({"prefix_cache": "lru"}, "prefix_cache"), ({"prefix_cache": "off", "preemption": "cheaper"}, "preemption")],
)
def test_what_only_the_caller_knows_must_be_told(config, field):
    with pytest.raises(ConfigError, match=f"Engine.{field}"):
        memory(facts=KvFacts(), **config)


def test_contiguous_runs_share_nothing():
    with pytest.raises(ConfigError, match=r"needs Engine\.allocator = 'paged'"):
        EngineConfig(prefix_cache="lru", allocator="contiguous")


def test_a_prefix_that_was_served_before_is_not_prefilled_again():
    jobs = [Job(0, 41, 2), Job(10**9, 41, 2)]  # requests 0 and 1 begin alike for 5 tokens
    engine = make_engine(jobs, prefix_cache="lru")
    engine.run()
    steps, requests = engine.log.step_columns(64), engine.log.request_columns()
    assert requests["cached_tokens"] == [0, 4]
    assert steps["prefix_lookup_tokens"].tolist() == [41, 0, 41, 0]
    assert steps["prefix_hit_tokens"].sum() == 4
    assert steps["prefill_tokens"].sum() == 41 + 37


def test_swapping_recomputes_nothing_and_loses_no_token():
    jobs = [Job(0, 8, 30), Job(0, 8, 30), Job(0, 8, 30)]
    engines = {how: make_engine(jobs, num_pages=14, preemption=how) for how in ("recompute", "swap")}
    for engine in engines.values():
        engine.run()
    steps = {how: engine.log.step_columns(14) for how, engine in engines.items()}
    assert engines["swap"].log.request_columns()["output_tokens"] == [30] * 3
    assert steps["swap"]["prefill_tokens"].sum() == 24 < steps["recompute"]["prefill_tokens"].sum()
    assert steps["swap"]["swapped_out_tokens"].sum() == steps["swap"]["swapped_in_tokens"].sum() > 0
    assert steps["recompute"]["swapped_out_tokens"].sum() == 0
    columns = engines["swap"].log.request_columns()
    assert [stall > 0 for stall in columns["max_stall_s"]] == [times > 0 for times in columns["preemptions"]]
    assert sum(columns["preemptions"]) > 0


# ---- two engines ----


def scheduler(num_pages: int = 16, **options) -> Scheduler:
    config = EngineConfig(page_tokens=4, max_seqs=4, max_step_tokens=32, free_page_watermark=0.0)
    return Scheduler(config, num_pages=num_pages, max_context_tokens=100, **{"log": RunLog(4)} | options)


def step(one: Scheduler, now: int = 0):
    """A plan and what is left of it after it was applied."""
    plan = one.plan(now, lambda counts, now: 1)
    return plan, None if plan is None else one.apply(plan, StepResult(10, 10), now, now + 10)


def request(index: int, prompt_tokens: int = 9, output_tokens: int = 6) -> Request:
    return Request(index=index, arrival_ticks=0, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def test_a_request_is_handed_over_after_its_first_token_and_its_pages_stay_until_they_are_fetched():
    log = RunLog(2)
    one = scheduler(log=log, hands_over=True)
    one.add(request(0), 0)
    one.add(request(1, output_tokens=1), 0)
    _, finished = step(one)
    assert finished == [1]  # it wanted no more
    handed = one.handed[0]
    assert not one.sequences and (handed.kv_tokens, handed.generated, handed.slot) == (9, 1, -1)
    assert one.pool.used_count == len(handed.pages) == 3
    assert one.plan(10, lambda counts, now: 1) is None
    one.fetched(0)
    assert one.pool.used_count == 0 and not one.handed
    assert sum('"handed_over"' in line for line in log.event_lines()) == 1


def test_pages_that_nobody_fetched_yet_make_others_wait_not_fail():
    one = scheduler(num_pages=4, hands_over=True)
    one.add(request(0), 0)
    one.add(request(1), 0)
    step(one)
    assert one.sequences and one.plan(10, lambda counts, now: 1) is None
    one.fetched(0)
    assert step(one, 20)[0].kind is Kind.PREFILL


def test_a_request_that_arrives_with_its_kv_decodes_at_once():
    one = scheduler()
    assert one.add(request(0), 5, Arrived(kv_tokens=9, generated=1))
    plan, _ = step(one, 5)
    (move,), (row,) = plan.moves, plan.rows()
    assert (move.kind, move.index, move.slot, move.tokens, len(move.pages)) == (MoveKind.RECEIVE, 0, row.slot, 9, 3)
    assert plan.kind is Kind.DECODE and plan.counts.prefill_tokens == 0 and plan.horizon == 1
    for now in range(15, 55, 10):
        plan, finished = step(one, now)
        assert plan.moves == ()
    assert finished == [0]


def test_a_request_that_arrived_and_was_preempted_is_prefilled_like_anybody():
    one = scheduler(num_pages=8)
    for index in range(2):
        one.add(request(index, 9, 20), 0, Arrived(kv_tokens=9, generated=1))
    prefills, done = [], []
    for now in range(0, 2000, 10):
        plan, finished = step(one, now)
        if plan is None:
            break
        prefills.append(plan.counts.prefill_tokens)
        done += finished
    assert sorted(done) == [0, 1]
    assert sum(prefills) > 9 and one.pool.used_count == 0
