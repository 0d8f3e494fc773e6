"""Simulated answers end where they are said to, beside horizons, batches and drafts."""

import numpy as np
import pytest

from nanoserve.engine.types import TICKS_PER_S
from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.executors.speculating_roofline import SpeculatingRoofline
from nanoserve.executors.stopping import StoppingExecutor
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
