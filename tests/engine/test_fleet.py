"""A fleet of one is the engine; a fleet of several is exact, deterministic and loses nobody."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.engine.clock import VirtualClock, WallClock
from nanoserve.engine.engine import Engine, Load
from nanoserve.engine.fleet import Fleet
from nanoserve.engine.flights import MeasuredFlights, PricedFlights
from nanoserve.engine.log import RunLog
from nanoserve.engine.routing import Router, register_route, route
from nanoserve.engine.types import TICKS_PER_S, to_seconds
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.load import ClosedLoop
from nanoserve.trace.types import Trace
from tests.engine.factories import FIXED_TICKS, Job, LinearExecutor, ListLoad, held_pages, knobs_strategy, make_engine

NUM_PAGES = 40
ROUTERS = ["round_robin", "least_loaded", "session_affinity", "prefix_affinity", "least_work"]

jobs_strategy = st.lists(
    st.builds(
        Job,
        st.integers(0, 400_000_000),
        st.integers(1, 60),
        st.integers(1, 60),
        client=st.integers(0, 2),
        session=st.none() | st.integers(0, 3),
    ),
    min_size=1,
    max_size=25,
)
clients_strategy = st.none() | st.integers(1, 5)  # None is an open loop


def load_of(jobs: list[Job], clients: int | None, think_ticks: int) -> Load:
    """An open loop over the arrivals of jobs, or a closed one."""
    if clients is None:
        return ListLoad(sorted(job.arrival_ticks for job in jobs))
    ones = np.ones(len(jobs), np.int64)
    trace = Trace(name="jobs", source="a test", arrival_s=np.zeros(len(jobs)), prompt_tokens=ones, output_tokens=ones)
    return ClosedLoop(trace, lambda s: round(s * TICKS_PER_S), clients=clients, think_time_s=to_seconds(think_ticks))


def _engines(jobs: list[Job], count: int, **options) -> list[Engine]:
    log = RunLog(len(jobs))
    executors = [LinearExecutor() for _ in range(count)]
    return [
        make_engine(
            jobs, log=log if number == 0 else log.of_replica(), executor=executor, num_pages=NUM_PAGES, **options
        )
        for number, executor in enumerate(executors)
    ]


def make_fleet(
    jobs: list[Job],
    count: int,
    router: str = "round_robin",
    clients: int | None = None,
    think_ticks: int = 0,
    **options,
) -> Fleet:
    """`count` virtual engines over `jobs`; `options` are those of `make_engine`."""
    engines = _engines(jobs, count, **options)
    return Fleet(
        engines,
        load=load_of(jobs, clients, think_ticks),
        clock=VirtualClock(),
        flights=PricedFlights(),
        router=Router(route(router), engines),
        request_of=engines[0]._request_of,
    )


def _events(engine: Engine) -> list[str]:
    return list(engine.log.event_lines())


@given(jobs_strategy, knobs_strategy, clients_strategy, st.sampled_from([0, 3 * FIXED_TICKS]))
@settings(max_examples=100)
def test_a_fleet_of_one_has_the_records_of_the_engine(jobs, knobs, clients, think_ticks):
    options = {"static_timeout_s": to_seconds(20_000_000), "deadline_s": to_seconds(50_000_000), **knobs}
    options |= {"timeout_s": to_seconds(150_000_000)}
    (alone,) = _engines(jobs, 1, **options)
    alone.load = load_of(jobs, clients, think_ticks)
    alone.run()
    fleet = make_fleet(jobs, 1, clients=clients, think_ticks=think_ticks, **options)
    fleet.run()
    (only,) = fleet.engines
    assert _events(only) == _events(alone)
    assert only.log.request_columns() == alone.log.request_columns()
    ours, theirs = only.log.step_columns(NUM_PAGES), alone.log.step_columns(NUM_PAGES)
    for name, column in ours.items():
        assert column.tolist() == theirs[name].tolist(), name


@given(
    jobs_strategy,
    st.integers(2, 4),
    st.sampled_from(ROUTERS),
    knobs_strategy,
    clients_strategy,
    st.sampled_from([0, 3 * FIXED_TICKS]),
    st.sampled_from([None, to_seconds(150_000_000)]),
)
@settings(max_examples=150)
def test_horizons_change_nothing_in_a_fleet(jobs, count, router, knobs, clients, think_ticks, timeout_s):
    options = {"static_timeout_s": to_seconds(20_000_000), "deadline_s": to_seconds(50_000_000), **knobs}
    options |= {"router": router, "clients": clients, "think_ticks": think_ticks, "timeout_s": timeout_s}
    together, single = make_fleet(jobs, count, **options), make_fleet(jobs, count, max_horizon_steps=1, **options)
    together.run()
    single.run()
    assert sorted(_events(together.engines[0])) == sorted(_events(single.engines[0]))
    assert together.engines[0].log.request_columns() == single.engines[0].log.request_columns()
    assert together.replica_of == single.replica_of
    for long, short in zip(together.engines, single.engines, strict=True):
        ours, theirs = long.log.step_columns(NUM_PAGES), short.log.step_columns(NUM_PAGES)
        assert ours["steps"].sum() == theirs["steps"].sum()
        assert ours["decode_kv_tokens"].sum() == theirs["decode_kv_tokens"].sum()


@given(jobs_strategy, st.integers(1, 4), st.sampled_from(ROUTERS), knobs_strategy, clients_strategy)
@settings(max_examples=60)
def test_every_request_leaves_once_from_where_it_was_routed_and_pools_are_whole(jobs, count, router, knobs, clients):
    options = {"static_timeout_s": to_seconds(20_000_000), "deadline_s": to_seconds(50_000_000), **knobs}
    fleet = make_fleet(jobs, count, router, clients, timeout_s=to_seconds(150_000_000), **options)
    fleet.run()
    reasons = fleet.engines[0].log.request_columns()["finish_reason"]
    assert len(reasons) == len(jobs) == fleet.finished_count
    assert set(reasons) <= {"length", "refused", "timed_out", "out_of_memory"}
    for number, engine in enumerate(fleet.engines):
        assert held_pages(engine.scheduler) == 0
        served = set(engine.executor.released)
        assert all(fleet.replica_of[row] == number for row in served)


def test_a_request_is_taken_that_came_between_two_looks_while_all_others_timed_out():
    interval_s, timeout_s = to_seconds(7_000_000), to_seconds(30_000_000)
    fleet = make_fleet([Job(0, 4, 60), Job(29_500_000, 4, 4)], 1, interval_s=interval_s, timeout_s=timeout_s)
    fleet.run()
    assert fleet.engines[0].log.request_columns()["finish_reason"] == ["timed_out", "length"]


def test_replicas_run_at_the_same_time():
    jobs = [Job(0, 8, 20)] * 4
    two, one = make_fleet(jobs, 2, "least_loaded"), make_fleet(jobs, 1)
    two.run()
    one.run()
    assert two.replica_of == {0: 0, 1: 1, 2: 0, 3: 1}
    first, second = (engine.log.step_columns(NUM_PAGES) for engine in two.engines)
    assert first["start_s"].tolist() == second["start_s"].tolist()
    assert two.clock.now() < one.clock.now()


def test_sessions_stay_where_they_began():
    rng = random.Random(0)
    jobs = [Job(rng.randrange(10**9), 8, 8, session=number % 5) for number in range(60)]
    fleet = make_fleet(jobs, 3, "session_affinity")
    fleet.run()
    sessions = [job.session for job in sorted(jobs, key=lambda job: job.arrival_ticks)]
    homes = {(sessions[row], replica) for row, replica in fleet.replica_of.items()}
    assert len(homes) == 5


def test_least_loaded_keeps_the_queue_shorter_than_taking_turns():
    rng = random.Random(1)
    jobs = [Job(rng.randrange(40 * FIXED_TICKS), *((60, 60) if number % 2 else (2, 2))) for number in range(60)]
    slowest = {}
    for router in ("round_robin", "least_loaded"):
        fleet = make_fleet(jobs, 2, router)
        fleet.run()
        slowest[router] = max(fleet.engines[0].log.request_columns()["finish_s"])
    assert slowest["least_loaded"] < slowest["round_robin"]


def test_a_view_is_empty_again_when_all_have_left():
    fleet = make_fleet([Job(0, 8, 8), Job(0, 900, 1)], 2, "least_loaded")  # the second is refused
    fleet.run()
    assert [(view.requests, view.tokens) for view in fleet.router.views] == [(0, 0), (0, 0)]
    assert sum(view.sent for view in fleet.router.views) == 2


def test_a_stopped_fleet_aborts_what_is_left_and_keeps_its_records():
    fleet = make_fleet([Job(0, 4, 40)] * 4, 2, max_horizon_steps=1)
    fleet.run(should_stop=lambda: fleet.clock.now() > 5 * FIXED_TICKS)
    columns = fleet.engines[0].log.request_columns()
    assert columns["finish_reason"] == ["aborted"] * 4
    assert all(0 < tokens < 40 for tokens in columns["output_tokens"])
    assert [engine.scheduler.pool.used_count for engine in fleet.engines] == [0, 0]


def test_a_router_that_chooses_nobody_is_named():
    register_route("nobody", lambda request, views, now_ticks: 2)
    fleet = make_fleet([Job(0, 4, 4)], 2, "nobody")
    with pytest.raises(ConfigError, match="chose replica 2 for request 0; there are 2"):
        fleet.run()


class _Device(LinearExecutor):
    """A device whose plan is ready once every device of the set has one."""

    def __init__(self, under_way: set[int], devices: int):
        super().__init__()
        self.under_way, self.devices = under_way, devices

    def submit(self, plan):
        self.under_way.add(id(self))
        done = super().submit(plan)
        done.ready = lambda: len(self.under_way) == self.devices
        return done


def test_on_a_wall_clock_every_free_replica_is_submitted_before_a_result_is_awaited():
    jobs, log, under_way = [Job(0, 4, 1)] * 2, RunLog(2), set()
    engines = [
        make_engine(jobs, log=log if n == 0 else log.of_replica(), executor=_Device(under_way, 2)) for n in (0, 1)
    ]
    fleet = Fleet(
        engines,
        load=ListLoad([0, 0]),
        clock=WallClock(),
        flights=MeasuredFlights(),
        router=Router(route("round_robin"), engines),
        request_of=engines[0]._request_of,
    )
    fleet.run()  # never returns if a result is awaited first
    assert log.request_columns()["finish_reason"] == ["length"] * 2
    assert all(engine.log.plan_count() == 1 for engine in engines)
