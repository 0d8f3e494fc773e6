"""A frozen engine, thawed into a fresh one of the same config, is the same graph and goes on in the same way."""

import dataclasses
import itertools
import os
import pickle
import pickletools
import random

import pytest

from nanoserve.engine.clock import WallClock
from nanoserve.engine.engine import Engine
from nanoserve.engine.faults import Leak
from nanoserve.engine.snapshot import Frozen, Header, Outline, freeze, thaw
from nanoserve.specs.errors import ConfigError, SnapshotError
from tests.engine.factories import KNOBS, Job, LinearExecutor, held_pages, make_engine, possible
from tests.engine.graphs import differences

PAGES = 24
HEADER = Header(commit="c0ffee", config="Engine.max_seqs = 8\nEngine.policy = 'fcfs'\n", trace="a1", weights=None)


class Pricing(LinearExecutor):
    """The linear executor; the plans that it saw before a snapshot are not the engine's state."""

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "plans"}


def jobs(seed: int, count: int = 40) -> list[Job]:
    rng = random.Random(seed)
    return [
        Job(
            arrival_ticks=rng.randrange(40_000_000),
            prompt_tokens=rng.randint(1, 40),
            output_tokens=rng.randint(1, 30),
            client=rng.randrange(3),
            priority=rng.randrange(3),
            session=rng.randrange(6),
        )
        for _ in range(count)
    ]


def random_knobs(rng: random.Random) -> dict:
    return possible({name: rng.choice(values) for name, values in KNOBS.items()}) | {
        "deadline_s": 1e-11,
        "timeout_s": 1e-10,
        "static_timeout_s": 1e-12,
    }


def engine_of(seed: int, knobs: dict) -> Engine:
    """Small enough a pool that sequences are preempted or fail; stop tokens that end some early; perhaps a leak."""
    stops = {index: 1 + index % 7 for index in range(0, 40, 3)}
    leak = Leak(6, 1) if seed % 3 == 0 else None
    return make_engine(jobs(seed), num_pages=PAGES, executor=Pricing(stops), leak=leak, **knobs)


def possible_knobs(rng: random.Random) -> dict:
    """Knobs that the engine accepts together."""
    while True:
        knobs = random_knobs(rng)
        try:
            engine_of(0, knobs)
        except ConfigError:
            continue
        return knobs


def plans_of(engine: Engine) -> list[tuple]:
    assert isinstance(engine.executor, Pricing)
    return engine.executor.plans


def records(engine: Engine) -> list[str]:
    return [*engine.log.event_lines(), repr(engine.log.request_columns()), repr(engine.log.step_columns(PAGES))]


def frozen_after(seed: int, knobs: dict, plans: int) -> Frozen:
    """The state of an engine after so many plans."""
    engine = engine_of(seed, knobs)
    outline = Outline(engine)
    kept, left = [], itertools.count(plans - 1, -1)

    def observe(done: int, now: int) -> None:
        if next(left) == 0:
            kept.append(freeze(engine, outline))

    engine.run(observe=observe)
    return kept[0]


@pytest.mark.parametrize("seed", range(40))
def test_a_thawed_engine_makes_the_plans_and_the_records_that_the_frozen_one_made(seed: int):
    rng = random.Random(seed)
    knobs = possible_knobs(rng)
    whole = engine_of(seed, knobs)
    whole.run()
    frozen = frozen_after(seed, knobs, rng.randint(1, len(plans_of(whole))))
    resumed = engine_of(seed, knobs)
    thaw(frozen, Outline(resumed))
    resumed.run()
    made = plans_of(resumed)
    assert made == plans_of(whole)[len(plans_of(whole)) - len(made) :]
    assert records(resumed) == records(whole)
    assert held_pages(resumed.scheduler) == 0


@pytest.mark.parametrize("knobs", [{}, *({name: values[-1]} for name, values in KNOBS.items())], ids=str)
def test_nothing_in_the_graph_is_left_out(knobs: dict):
    """Frozen in the middle of a run under each knob; the fresh engine differs from it, the thawed one nowhere."""
    knobs = {"deadline_s": 1e-11, "timeout_s": 1e-9, "static_timeout_s": 1e-12} | knobs
    engine, fresh = engine_of(3, knobs), engine_of(3, knobs)
    outline, fresh_outline, plans = Outline(engine), Outline(fresh), itertools.count(1)

    def compare_after_thirty_plans(done: int, now: int) -> None:
        if next(plans) == 30:
            assert differences(engine, fresh) != []
            thaw(freeze(engine, outline), fresh_outline)
            plans_of(fresh)[:] = plans_of(engine)
            assert differences(engine, fresh) == []

    engine.run(observe=compare_after_thirty_plans)
    assert next(plans) > 30


def test_objects_that_were_there_keep_their_identity():
    fresh = engine_of(1, {})
    parts = fresh.scheduler, fresh.log, fresh.load, fresh.clock, fresh.executor
    thaw(frozen_after(1, {}, 20), Outline(fresh))
    assert (fresh.scheduler, fresh.log, fresh.load, fresh.clock, fresh.executor) == parts
    assert fresh.scheduler.log is fresh.log and fresh.log.plan_count() == 20


def test_freezing_changes_nothing():
    once, again = engine_of(2, {}), engine_of(2, {})
    outline = Outline(once)
    once.run(observe=lambda done, now: freeze(once, outline) and None)
    again.run()
    assert records(once) == records(again)


def test_policies_and_configs_are_not_in_the_bytes():
    frozen = frozen_after(2, {"policy": "priority"}, 20)
    named = {str(argument) for _, argument, _ in pickletools.genops(frozen.graph)}
    assert not {"EngineConfig", "ageing_priority", "youngest"} & {word for name in named for word in name.split()}
    assert "engine.scheduler.config" in named


def test_device_arrays_go_into_a_list_once_each():
    engine, fresh = engine_of(2, {}), engine_of(2, {})
    outline, fresh_outline = Outline(engine), Outline(fresh)

    class DeviceArray:
        pass

    engine.scheduler.first = engine.scheduler.second = array = DeviceArray()  # type: ignore[attr-defined]
    frozen = freeze(engine, outline, lambda part: isinstance(part, DeviceArray))
    assert frozen.arrays == [array]
    thaw(Frozen(frozen.graph, ["restored"], frozen.parts), fresh_outline)
    assert fresh.scheduler.first == fresh.scheduler.second == "restored"  # type: ignore[attr-defined]


def test_what_cannot_be_kept_is_said_when_the_snapshot_is_taken():
    engine = engine_of(2, {})
    outline = Outline(engine)
    engine.scheduler.rows = (number for number in range(3))  # type: ignore[attr-defined]
    with pytest.raises(SnapshotError, match="cannot be kept: cannot pickle 'generator' object"):
        freeze(engine, outline)


def test_the_state_of_an_engine_made_otherwise_is_refused():
    frozen = frozen_after(2, {"allocator": "paged"}, 20)
    with pytest.raises(SnapshotError, match="which this engine does not have"):
        thaw(frozen, Outline(engine_of(2, {"allocator": "contiguous"})))


def test_damaged_bytes_are_refused():
    frozen = frozen_after(2, {}, 20)
    with pytest.raises(SnapshotError, match="cannot be read"):
        thaw(Frozen(frozen.graph[:-40], [], frozen.parts), Outline(engine_of(2, {})))


def test_bytes_that_name_what_is_no_state_are_refused():
    class Command:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(SnapshotError, match=r"posix.system, which no engine's state is made of"):
        thaw(Frozen(pickle.dumps(Command()), [], frozenset()), Outline(engine_of(2, {})))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("commit", "beef", "another commit: beef there, c0ffee here"),
        ("trace", "b2", "another trace: b2 there, a1 here"),
        ("weights", "w", "another weights: w there, None here"),
        ("format", 0, "another format: 0 there, 1 here"),
        (
            "config",
            "Engine.max_seqs = 8\nEngine.policy = 'deadline'\n",
            "another config: Engine.policy = 'deadline' there, Engine.policy = 'fcfs' here",
        ),
    ],
)
def test_a_header_says_what_differs(field: str, value, said: str):
    assert HEADER.difference(dataclasses.replace(HEADER, **{field: value})) == said
    assert HEADER.difference(dataclasses.replace(HEADER)) == ""


def test_a_wall_clock_goes_on_from_the_time_it_was_kept_at():
    clock, later = WallClock(), WallClock()
    clock.__setstate__({"_restored_ns": 3_600_000_000_000})
    assert 3600 * 2**60 <= clock.now() < 3700 * 2**60
    later.__setstate__(clock.__getstate__())
    assert clock.now() <= later.now() + 2**60
