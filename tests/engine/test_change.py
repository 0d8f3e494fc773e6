"""An engine that goes on under other policies: nobody is lost, and from then on it decides as they say."""

import dataclasses
import random

import pytest

from nanoserve.engine.config import CHANGEABLE, EngineConfig
from nanoserve.engine.engine import Engine
from tests.engine.factories import Job, make_engine

CHANGES = [
    {"policy": "shortest_first"},
    {"policy": "priority"},
    {"policy": "fair_share"},
    {"policy": "deadline", "deadline_s": 1e-11},
    {"policy": "fcfs"},
    {"victim": "least_progress", "admission": "full_prompt"},
    {"prefill_chunk_tokens": 8, "chunking": "adaptive", "decodes_per_prompt": 2.0},
    {"free_page_watermark": 0.4, "queue_limit": 2},
]


def jobs(seed: int) -> list[Job]:
    rng = random.Random(seed)
    return [
        Job(rng.randrange(20_000_000), rng.randint(1, 40), rng.randint(1, 30), rng.randrange(3), rng.randrange(3))
        for _ in range(40)
    ]


def engine_of(seed: int, **knobs) -> Engine:
    return make_engine(jobs(seed), num_pages=24, **knobs)


def run_changed(engine: Engine, after_plans: int, change: dict) -> None:
    def observe(done: int, now: int) -> None:
        if engine.log.plan_count() == after_plans:
            engine.scheduler.change(dataclasses.replace(engine.scheduler.config, **change), now)

    engine.run(observe=observe)


def plans_of(engine: Engine) -> list[tuple]:
    return engine.executor.plans  # type: ignore[attr-defined]


def test_every_changeable_field_is_one_of_the_config():
    assert set(CHANGEABLE) <= {field.name for field in dataclasses.fields(EngineConfig)}
    assert {name for change in CHANGES for name in change} == set(CHANGEABLE)


@pytest.mark.parametrize("start", ["fcfs", "priority", "fair_share"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change))
def test_nobody_is_lost_and_the_plans_before_stay(start: str, change: dict):
    whole, changed = engine_of(3, policy=start), engine_of(3, policy=start)
    whole.run()
    run_changed(changed, 25, change)
    assert plans_of(changed)[:25] == plans_of(whole)[:25]
    assert changed.log.finished_count == 40 and changed.scheduler.pool.used_count == 0


def test_a_change_to_the_same_config_changes_nothing():
    whole, changed = engine_of(3), engine_of(3)
    whole.run()
    run_changed(changed, 25, {})
    assert plans_of(changed) == plans_of(whole)


def test_those_who_wait_are_served_in_the_new_order():
    """One slot, all here from the start: the first under the old policy, then by length under the new one."""
    lengths = [9, 30, 4, 22, 15]
    engine = make_engine([Job(0, prompt, 3) for prompt in lengths], max_seqs=1)
    run_changed(engine, 1, {"policy": "shortest_first"})
    columns = engine.log.request_columns()
    served = sorted(range(5), key=lambda index: columns["admitted_s"][index])
    assert [lengths[index] for index in served] == [9, 4, 15, 22, 30]


def test_the_watermark_and_the_queue_limit_hold_from_then_on():
    engine = make_engine([Job(0, 8, 20) for _ in range(10)] + [Job(5_000_000, 8, 20) for _ in range(5)], max_seqs=2)
    run_changed(engine, 1, {"queue_limit": 3})
    reasons = engine.log.request_columns()["finish_reason"]
    assert reasons[:10] == ["length"] * 10 and "refused" in reasons[10:]
    assert engine.scheduler.memory.watermark_pages == 0
    engine.scheduler.change(dataclasses.replace(engine.scheduler.config, free_page_watermark=0.5), 0)
    assert engine.scheduler.memory.watermark_pages == engine.scheduler.pool.num_pages // 2
