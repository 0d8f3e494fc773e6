"""Simulated answers end where they are said to, beside horizons, batches and drafts."""

import random

import numpy as np
import pytest

from nanoserve.engine.types import TICKS_PER_S
from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.executors.speculating_roofline import SpeculatingRoofline
from nanoserve.executors.stopping import ForeseeingExecutor, StoppingExecutor
from nanoserve.roofline.calibration import constants_for
from nanoserve.specs.model_registry import model
from tests.engine.factories import Job, make_engine
from tests.roofline import factories as make

ANSWERS, LIMIT = [1, 7, 12, 30, 3, 19], 30
JOBS = [Job(place * TICKS_PER_S // 500, 10 + place, LIMIT) for place in range(len(ANSWERS))]


def executor():
    cluster = make.cluster()
    constants = constants_for(cluster.chip, make.BF16, "calibrated")
    return RooflineExecutor(model("llama-3.2-1b"), cluster, make.BF16, constants)


@pytest.mark.parametrize(
    "knobs",
    [{}, {"max_horizon_steps": 1}, {"batching": "static", "static_timeout_s": 0.001}, {"allocator": "contiguous"}],
)
def test_answers_end_where_they_are_said_to(knobs):
    engine = make_engine(JOBS, executor=StoppingExecutor(executor(), dict(enumerate(ANSWERS))), num_pages=200, **knobs)
    engine.run()
    columns = engine.log.request_columns()
    assert columns["output_tokens"] == ANSWERS and columns["max_output_tokens"] == [LIMIT] * len(ANSWERS)
    assert set(columns["finish_reason"]) == {"stop"}


KEEPING = {"keep_session_s": 0.02, "num_pages": 24}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "knobs",
    [
        {"num_pages": 24},
        {"num_pages": 24, "preemption": "swap", "batching": "prefill_first"},
        {"num_pages": 24, "batching": "static", "static_timeout_s": 0.001},
        {"num_pages": 40, "prefix_cache": "lru", "interval_s": 0.003},
        KEEPING,
        KEEPING | {"when_full": "fail"},
        KEEPING | {"when_full": "fail", "allocator": "contiguous", "num_pages": 60},
    ],
    ids=str,
)
@pytest.mark.parametrize("timeout_s", [None, 0.1])  # without one, nothing is due after the last arrival
def test_plans_that_end_with_the_first_answer_give_the_records_of_single_steps(timeout_s, knobs, seed):
    rng = random.Random(seed)
    jobs = [
        Job(rng.randrange(TICKS_PER_S // 4), rng.randint(1, 30), LIMIT, session=rng.randrange(5)) for _ in range(40)
    ]
    answers = {index: rng.randint(1, LIMIT) for index in range(0, 40)}
    runs = []
    for steps in (1024, 1):
        foreseeing = ForeseeingExecutor(executor(), answers)
        engine = make_engine(jobs, executor=foreseeing, timeout_s=timeout_s, max_horizon_steps=steps, **knobs)
        engine.run()
        runs.append(engine)
    together, single = runs
    assert list(together.log.event_lines()) == list(single.log.event_lines())
    assert together.log.request_columns() == single.log.request_columns()
    held = [(log["pages_used"] * log["duration_s"]).sum() for log in (run.log.step_columns(60) for run in runs)]
    assert held[0] == pytest.approx(held[1], rel=0.2)  # pages of a plan are those of its end
    assert together.log.plan_count() < single.log.plan_count()
    assert {"stop"} <= set(single.log.request_columns()["finish_reason"])


def test_a_request_that_is_not_named_goes_to_its_limit():
    engine = make_engine(JOBS, executor=StoppingExecutor(executor(), {0: 4}), num_pages=200)
    engine.run()
    assert engine.log.request_columns()["output_tokens"] == [4] + [LIMIT] * (len(JOBS) - 1)


def test_drafts_beyond_a_stop_are_not_gained():
    speculating = SpeculatingRoofline(executor(), acceptance=0.9)
    knobs = {"draft": "ngram", "draft_tokens": 3, "draft_acceptance": 0.9}
    stopping = StoppingExecutor(speculating, dict(enumerate(ANSWERS)))
    engine = make_engine(JOBS, executor=stopping, num_pages=200, **knobs)
    engine.run()
    assert engine.log.request_columns()["output_tokens"] == ANSWERS
    steps = engine.log.step_columns(200)
    assert np.sum(steps["accepted_tokens"]) <= sum(ANSWERS)
