"""The formula against replays where it holds exactly, and the bisection on limits that are known."""

import dataclasses

import numpy as np
import pytest

from nanoserve.analysis.recommend.saturation import ceiling, saturation
from nanoserve.analysis.recommend.trial import Trial, run_trial
from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import Cluster, Experiment, SloConfig
from nanoserve.trace.types import Trace

FORMULA_TOLERANCE = 0.1  # of the rate: prompts do not go through evenly
SERVICE = Experiment(
    model="llama-3.1-8b",
    cluster=Cluster(mesh={"tensor": 1}),
    slo=SloConfig(ttft_s=1e6, tpot_s=1e3),
    executor="roofline",
)


def stream(count: int, prompt: int, answer: int, rate_rps: float = 1.0) -> Trace:
    """Evenly spaced, and all alike."""
    return Trace(
        name="stream",
        source="test",
        arrival_s=np.arange(count) / rate_rps,
        prompt_tokens=np.full(count, prompt),
        output_tokens=np.full(count, answer),
    )


@pytest.mark.parametrize(
    ("engine", "held_by"),
    [
        (EngineConfig(max_seqs=32), "slots"),
        (EngineConfig(max_seqs=256, num_pages=1000, allocator="contiguous"), "memory"),
        (EngineConfig(max_seqs=64, max_step_tokens=128), "prompts"),
    ],
)
def test_requests_that_are_all_alike_are_served_at_the_rate_of_the_formula(engine, held_by):
    experiment = dataclasses.replace(SERVICE, engine=engine)
    found = ceiling(experiment, stream(600, 300, 100))
    assert found.limit == held_by
    more = stream(600, 300, 100, rate_rps=1.3 * found.requests_per_s)
    finished_s = np.sort(more.arrival_s + run_trial(experiment, more).e2e_s)
    assert found.requests_per_s == pytest.approx(300 / (finished_s[450] - finished_s[150]), rel=FORMULA_TOLERANCE)


def test_memory_that_is_handed_out_by_the_page_holds_more_than_in_runs_and_less_than_the_formula_says():
    """Preemptions are not in the formula."""
    paged = dataclasses.replace(SERVICE, engine=EngineConfig(max_seqs=256, num_pages=1000))
    runs = dataclasses.replace(SERVICE, engine=EngineConfig(max_seqs=256, num_pages=1000, allocator="contiguous"))
    one, other = (ceiling(each, stream(600, 300, 100)) for each in (paged, runs))
    assert one.limit == "memory" and one.batch > other.batch
    more = stream(600, 300, 100, rate_rps=2 * one.requests_per_s)
    finished_s = np.sort(more.arrival_s + run_trial(paged, more).e2e_s)
    assert 300 / (finished_s[450] - finished_s[150]) <= one.requests_per_s


def test_replicas_serve_as_many_times():
    one, two = (
        ceiling(dataclasses.replace(SERVICE, cluster=Cluster(mesh={"data": data, "tensor": 1})), stream(10, 300, 100))
        for data in (1, 2)
    )
    assert two.requests_per_s == 2 * one.requests_per_s


def test_the_pace_of_the_objective_holds_the_batch():
    strict = dataclasses.replace(SERVICE, slo=SloConfig(ttft_s=1e6, tpot_s=0.012))
    found = ceiling(strict, stream(10, 300, 100))
    assert found.limit == "pace" and found.step_s <= 0.012


@pytest.mark.parametrize("limit", [0.03, 0.4, 0.9, 1.0, 1.7, 30.0])
def test_the_bisection_finds_the_limit(limit):
    found = saturation(lambda load: made_up(1.0 if load <= limit else 0.9))
    assert limit / 1.02 <= found <= limit


def test_a_service_that_serves_nothing_has_no_limit():
    assert saturation(lambda load: made_up(0.0)) == 0.0


def test_one_that_serves_everything_is_not_asked_for_ever():
    assert saturation(lambda load: made_up(1.0)) == 64.0


def made_up(good: float) -> Trial:
    some = np.arange(100) < 100 * good
    times = np.ones(100)
    return Trial(
        good=some, failed=~some, ttft_s=times, tpot_s=times, e2e_s=times, output_tokens=1, reasons={}, peak_waiting=0,
        kv_utilization=1.0,
    )  # fmt: skip
