"""A replayed scenario agrees with the prices of its steps, worked out by hand."""

import dataclasses

import numpy as np
import pytest

from nanoserve.analysis.published.scenario import replay
from nanoserve.engine.config import EngineConfig
from nanoserve.roofline.calibration import Calibration, constants_for
from nanoserve.roofline.counts import StepCounts, causal_pairs
from nanoserve.roofline.memory import memory_plan
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import step_time
from nanoserve.specs.errors import CapacityError
from tests.analysis.published import factories as make

ROUNDING_S = 1e-9  # ticks against floats


def constants(scenario) -> Calibration:
    return constants_for(scenario.cluster.chip, scenario.precision, "calibrated", "vllm")


def seconds(scenario, counts: StepCounts) -> float:
    ops = step_ops(scenario.model, scenario.cluster, scenario.precision, counts)
    return float(step_time(ops, scenario.cluster, constants(scenario)))


def prefill(tokens: int) -> StepCounts:
    pairs = causal_pairs(0, tokens)
    return StepCounts(1, 0, 0, 0, 1, tokens, pairs, pairs, tokens, tokens, 1)


def test_one_request_takes_its_prefill_and_then_its_decode_steps():
    scenario = make.scenario(make.trace([100], [4]))
    outcome = replay(scenario, constants(scenario))
    decode_s = [seconds(scenario, StepCounts(1, 1, past, past, sampled=1)) for past in (101, 102, 103)]
    assert outcome.ttft_s[0] == pytest.approx(seconds(scenario, prefill(100)), abs=ROUNDING_S)
    assert outcome.tpot_s[0] == pytest.approx(sum(decode_s) / 3, abs=ROUNDING_S)
    assert outcome.output_tokens_per_s == pytest.approx(4 / (outcome.ttft_s[0] + sum(decode_s)))


def test_one_output_token_has_no_time_per_token():
    outcome = replay(make.scenario(make.trace([10], [1])), constants(make.scenario(make.trace([1], [1]))))
    assert np.isnan(outcome.tpot_s[0])


def test_a_served_request_joins_one_step_later_than_one_that_the_scheduler_is_told_of():
    requests = make.trace([100, 100], [50, 5], [0.0, 0.0301])
    told = make.scenario(requests)
    served = dataclasses.replace(told, served=True)
    first, second = (replay(scenario, constants(told)) for scenario in (told, served))
    step_s = seconds(told, StepCounts(1, 1, 103, 103, sampled=1))
    assert first.ttft_s[0] == second.ttft_s[0], "an idle engine starts at once"
    assert second.ttft_s[1] - first.ttft_s[1] == pytest.approx(step_s, rel=0.01)


def test_a_scenario_replayed_again_gives_the_same_times():
    scenario = make.scenario(make.trace(range(50, 90), range(10, 50)), clients=8, served=True)
    first, second = replay(scenario, constants(scenario)), replay(scenario, constants(scenario))
    assert (first.ttft_s == second.ttft_s).all()
    assert (first.tpot_s == second.tpot_s).all()


def test_reserved_outputs_run_no_more_at_once_than_fit_to_their_end():
    requests = make.trace([64] * 6, [64] * 6)
    engine = EngineConfig(max_seqs=6, page_tokens=16, num_pages=16, free_page_watermark=0)
    reserving = make.scenario(requests, engine=engine, reserve_outputs=True)  # 8 pages each: 2 at once
    two_slots = make.scenario(requests, engine=dataclasses.replace(engine, max_seqs=2))
    assert (
        replay(reserving, constants(reserving)).ttft_s.tolist()
        == replay(two_slots, constants(two_slots)).ttft_s.tolist()
    )


def test_pages_of_free_memory_are_a_share_of_what_the_weights_leave():
    requests = make.trace([1000] * 200, [100] * 200)
    engine = EngineConfig(max_seqs=200, max_step_tokens=8192)
    all_free = make.scenario(requests, engine=engine, free_share=1.0, reserve_outputs=True)
    little = dataclasses.replace(all_free, free_share=0.05)
    plan = memory_plan(
        all_free.model, all_free.cluster, all_free.precision, hbm_utilization=1.0, max_step_tokens=8192, max_seqs=200
    )
    fits = int(int(0.05 * plan.num_pages) / 69)
    limited = make.scenario(requests, engine=dataclasses.replace(engine, max_seqs=fits))
    assert 2 < fits < 50
    assert replay(little, constants(little)).duration_s == replay(limited, constants(limited)).duration_s
    assert replay(all_free, constants(all_free)).duration_s < replay(little, constants(little)).duration_s


def test_a_request_that_cannot_be_served_is_an_error():
    scenario = make.scenario(make.trace([100], [200_000]))
    with pytest.raises(CapacityError, match="1 of 1 requests could not be served"):
        replay(scenario, constants(scenario))
