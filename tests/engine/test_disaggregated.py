"""Two pools: every request moves once, nothing is lost on the way, and horizons still change nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.engine.clock import VirtualClock
from nanoserve.engine.disaggregated import DisaggregatedFleet, Link
from nanoserve.engine.flights import PricedFlights
from nanoserve.engine.log import RunLog
from nanoserve.engine.routing import Router, route
from nanoserve.engine.types import to_seconds, to_ticks
from tests.engine.factories import FIXED_TICKS, Job, LinearExecutor, held_pages, knobs_strategy, make_engine
from tests.engine.test_fleet import clients_strategy, jobs_strategy, load_of

NUM_PAGES = 40
TICKS_PER_TOKEN = 40_000
LINKS = [Link(0), Link(TICKS_PER_TOKEN), Link(TICKS_PER_TOKEN, layers=2)]
TIMES = {"static_timeout_s": to_seconds(20_000_000), "deadline_s": to_seconds(50_000_000)}


def make_pools(
    jobs: list[Job],
    prefill: int = 1,
    decode: int = 1,
    *,
    link: Link = Link(TICKS_PER_TOKEN),  # noqa: B008 (frozen)
    clients: int | None = None,
    decode_pages: int = NUM_PAGES,
    stops: dict[int, int] | None = None,
    **options,
) -> DisaggregatedFleet:
    """Virtual engines in two pools over `jobs`."""
    log = RunLog(len(jobs))
    engines = [
        make_engine(
            jobs,
            log=log if number == 0 else log.of_replica(),
            executor=LinearExecutor(stops),
            num_pages=NUM_PAGES if number < prefill else decode_pages,
            hands_over=number < prefill,
            **options,
        )
        for number in range(prefill + decode)
    ]
    return DisaggregatedFleet(
        engines[:prefill],
        engines[prefill:],
        load=load_of(jobs, clients, 0),
        clock=VirtualClock(),
        flights=PricedFlights(),
        router=Router(route("least_loaded"), engines[:prefill]),
        decode_router=Router(route("least_loaded"), engines[prefill:], first=prefill),
        link=link,
        request_of=engines[0]._request_of,
    )


def _steps(fleet: DisaggregatedFleet, number: int) -> dict:
    return fleet.engines[number].log.step_columns(NUM_PAGES)


@given(
    jobs_strategy,
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(LINKS),
    knobs_strategy,
    clients_strategy,
    st.sampled_from([None, to_seconds(150_000_000)]),
)
@settings(max_examples=150)
def test_horizons_change_nothing_in_two_pools(jobs, prefill, decode, link, knobs, clients, timeout_s):
    options = {"link": link, "clients": clients, "timeout_s": timeout_s, **TIMES, **knobs}
    together = make_pools(jobs, prefill, decode, **options)
    single = make_pools(jobs, prefill, decode, max_horizon_steps=1, **options)
    together.run()
    single.run()
    assert sorted(together.engines[0].log.event_lines()) == sorted(single.engines[0].log.event_lines())
    assert together.engines[0].log.request_columns() == single.engines[0].log.request_columns()
    assert together.hand_overs == single.hand_overs


@given(jobs_strategy, st.integers(1, 2), st.integers(1, 2), knobs_strategy, clients_strategy, st.integers(12, 40))
@settings(max_examples=100)
def test_every_request_leaves_once_and_both_pools_are_whole(jobs, prefill, decode, knobs, clients, decode_pages):
    options = {"clients": clients, "timeout_s": to_seconds(150_000_000), **TIMES, **knobs}
    fleet = make_pools(jobs, prefill, decode, decode_pages=decode_pages, **options)
    fleet.run()
    reasons = fleet.engines[0].log.request_columns()["finish_reason"]
    assert len(reasons) == len(jobs) == fleet.finished_count
    assert set(reasons) <= {"length", "refused", "timed_out", "out_of_memory"}
    for engine in fleet.engines:
        assert held_pages(engine.scheduler) == 0
        assert not engine.scheduler.handed and not engine.arrived
    assert [view.tokens for router in (fleet.router, fleet.decode_router) for view in router.views] == [0] * len(
        fleet.engines
    )


def test_a_decode_replica_looks_when_a_prompt_that_waited_for_pages_may_start():
    """Another decode replica takes KV, which lets the prefill pool go on, while this one could plan many steps."""
    jobs = [Job(0, 1, output) for output in (9, 53, 1, 12)] + [Job(0, 6, 60)] + [Job(0, 1, 1)] * 11
    options = {"allocator": "contiguous", "link": Link(TICKS_PER_TOKEN)}
    together, single = make_pools(jobs, 1, 3, **options), make_pools(jobs, 1, 3, max_horizon_steps=1, **options)
    together.run()
    single.run()
    assert together.hand_overs == single.hand_overs


def test_the_first_token_comes_from_one_pool_and_the_rest_from_the_other():
    fleet = make_pools([Job(0, 20, 9), Job(0, 16, 5), Job(0, 8, 1)])
    fleet.run()
    before, after = _steps(fleet, 0), _steps(fleet, 1)
    assert before["prefill_tokens"].sum() == 44 and before["decode_seqs"].sum() == 0
    assert after["prefill_tokens"].sum() == 0
    assert (after["steps"] * after["decode_seqs"]).sum() == 8 + 4
    assert sorted(fleet.hand_overs) == [0, 1]  # the third has its only token
    assert fleet.engines[0].log.request_columns()["output_tokens"] == [9, 5, 1]


def test_transfers_of_a_replica_queue_behind_each_other():
    fleet = make_pools([Job(0, 20, 9), Job(0, 16, 5)], link=Link(10 * FIXED_TICKS))
    fleet.run()
    first, second = (fleet.hand_overs[index] for index in (0, 1))
    assert first.begin_ticks == second.begin_ticks  # one step finished both prompts
    assert first.end_ticks == first.begin_ticks + 20 * 10 * FIXED_TICKS
    assert second.end_ticks == first.end_ticks + 16 * 10 * FIXED_TICKS


def test_two_replicas_send_side_by_side():
    fleet = make_pools([Job(0, 20, 9), Job(0, 20, 5)], prefill=2, link=Link(10 * FIXED_TICKS))
    fleet.run()
    assert fleet.hand_overs[0].end_ticks == fleet.hand_overs[1].end_ticks


@pytest.mark.parametrize(
    ("free", "start", "end", "arrival"),
    [
        (0, 100, 200, 208),  # hidden but for the last of ten layers
        (0, 190, 200, 270),  # the step is shorter than the transfer
        (500, 100, 200, 580),  # the link is busy
    ],
)
def test_layers_that_leave_early_hide_behind_the_step_that_computes_them(free, start, end, arrival):
    early, late = Link(8, layers=10), Link(8)
    assert early.arrival_ticks(free, start, end, tokens=10) == arrival
    assert arrival <= late.arrival_ticks(free, start, end, tokens=10)


def test_pages_stay_in_the_prefill_pool_until_the_decode_pool_takes_them():
    jobs = [Job(0, 40, 30)] * 3  # 18 pages each to the end
    fleet = make_pools(jobs, link=Link(0), decode_pages=18, max_seqs=4)
    held = []
    fleet.run(observe=lambda done, now: held.append(fleet.engines[0].scheduler.pool.used_count))
    assert max(held) == 20 and held[-1] == 0  # ten pages a prompt; the first was taken at once, two wait
    columns = fleet.engines[0].log.request_columns()
    assert columns["finish_reason"] == ["length"] * 3
    finish = columns["finish_s"]
    assert finish[0] < finish[1] < finish[2]  # one at a time fits


def test_a_decode_pool_that_is_too_small_refuses_and_frees_what_was_held():
    fleet = make_pools([Job(0, 40, 30)], decode_pages=10)
    fleet.run()
    columns = fleet.engines[0].log.request_columns()
    assert columns["finish_reason"] == ["refused"] and columns["output_tokens"] == [1]
    assert "the whole pool has 10" in columns["detail"][0]
    assert fleet.engines[0].scheduler.pool.used_count == 0


def test_a_run_that_is_stopped_ends_requests_that_are_on_the_way():
    fleet = make_pools([Job(0, 20, 30)] * 3, link=Link(to_ticks(1.0)))
    fleet.run(should_stop=lambda: len(fleet.hand_overs) == 3)
    columns = fleet.engines[0].log.request_columns()
    assert columns["finish_reason"] == ["aborted"] * 3 and columns["output_tokens"] == [1] * 3
    assert all(engine.scheduler.pool.used_count == 0 for engine in fleet.engines)
