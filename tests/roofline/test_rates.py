"""Rate matching: the arithmetic against small cases, and its advice against simulation."""

import functools

import numpy as np
import pytest

from nanoserve.building import Pool
from nanoserve.experiment import Cluster, Disaggregation, Experiment, SloConfig
from nanoserve.replay import prepare
from nanoserve.report.metrics import Summary, summarize
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.pricing import PlanPricer
from nanoserve.roofline.rates import Rates, decode_rps, prefill_rps
from nanoserve.roofline.table_pricing import pricer_for
from nanoserve.trace.source import TraceSource

REPLICAS, SLOTS, REQUESTS, LOAD = 6, 40, 2500, 0.95


class PerToken:
    """A pricer of one tick a token and one a KV position that is read, at 1,000 ticks a second."""

    def plan_ticks(self, counts: StepCounts) -> int:
        return counts.new_tokens + counts.decode_kv_tokens + counts.prefill_kv_tokens


def test_a_prefill_replica_runs_full_steps():
    prompts = np.array([10, 30])  # a step of 20 tokens is half of the load: one prompt in it, and 30 of 60 positions
    assert prefill_rps(PerToken(), prompts, step_tokens=20, ticks_per_s=1000) == pytest.approx(1000 / (20 + 30))


def test_a_decode_replica_is_as_full_as_slots_pages_and_the_token_time_let_it():
    prompts, outputs = np.array([20]), np.array([11])  # ten steps, which hold 25.5 positions on the mean
    rate = functools.partial(decode_rps, PerToken(), prompts, outputs, ticks_per_s=1000)
    step_ticks = 4 + 102
    assert rate(most_seqs=4, kv_tokens=10_000) == (pytest.approx(4 * 1000 / step_ticks / 10), 4)
    assert rate(most_seqs=100, kv_tokens=110)[1] == 4
    assert rate(most_seqs=100, kv_tokens=10_000, tpot_s=0.110)[1] == 4


def test_the_best_split_lets_most_through():
    rates = Rates(prefill_rps=2.0, decode_rps=6.0, decode_seqs=1)
    assert rates.prefill_per_decode == 3
    assert rates.best_split(8) == 6
    assert rates.capacity_rps(6, 2) == 12 > max(rates.capacity_rps(5, 3), rates.capacity_rps(7, 1))


# ---- against simulation ----


def _experiment(prefill: int, rate_rps: float) -> Experiment:
    return Experiment(
        model="llama-3.1-8b",
        executor="roofline",
        cluster=Cluster(mesh={"tensor": 1, "data": prefill}),
        disaggregation=Disaggregation(
            decode_mesh={"tensor": 1, "data": REPLICAS - prefill}, decode_engine={"max_seqs": SLOTS}
        ),
        trace=TraceSource(
            preset="azure_conversation",
            requests=REQUESTS,
            rate_rps=rate_rps,
            prompt_median_tokens=1024,
            prompt_sigma=0.3,
            output_median_tokens=96,
            output_sigma=0.3,
        ),
        slo=SloConfig(ttft_s=1.0, tpot_s=0.05),
    )


def _pricer(pool: Pool) -> PlanPricer:
    return pricer_for(pool.model, pool.cluster, pool.precision, pool.calibration, ticks_per_s=1 << 60)


@pytest.fixture(scope="module")
def rates() -> Rates:
    replay = prepare(_experiment(3, 100.0))
    prefill, decode = replay.pools
    prompts, outputs = replay.trace.prompt_tokens, replay.trace.output_tokens
    rps, seqs = decode_rps(
        _pricer(decode), prompts, outputs, most_seqs=SLOTS, kv_tokens=decode.pages * decode.config.page_tokens
    )
    step_tokens = prefill.config.max_step_tokens
    return Rates(
        prefill_rps=prefill_rps(_pricer(prefill), prompts, step_tokens=step_tokens), decode_rps=rps, decode_seqs=seqs
    )


@pytest.fixture(scope="module")
def simulated(rates) -> dict[int, tuple[Summary, float, float]]:
    """By prefill replicas, at a load just below what the advised split can do: the summary, and how full both pools
    are in the middle of the run: share of time that prefill replicas are busy, and of slots that decode."""
    best = rates.best_split(REPLICAS)
    load_rps = LOAD * rates.capacity_rps(best, REPLICAS - best)
    runs = {}
    for prefill in (best - 1, best, best + 1):
        replay = prepare(_experiment(prefill, load_rps))
        replay.run()
        records = replay.records()
        begin_s, end_s = np.quantile(replay.trace.arrival_s, [0.3, 0.9])
        middle = records.steps.filter((records.steps["start_s"] > begin_s) & (records.steps["start_s"] < end_s))
        chunks, tokens = (middle.filter(middle["pool"] == name) for name in ("prefill", "decode"))
        busy = chunks["duration_s"].sum() / (end_s - begin_s) / prefill
        running = (tokens["running"] * tokens["duration_s"]).sum() / (end_s - begin_s) / (REPLICAS - prefill)
        summary = summarize(records.steps, records.requests, replay.facts.slo, engines=REPLICAS)
        runs[prefill] = summary, busy, running / SLOTS
    return runs


def test_at_the_advised_split_both_pools_are_as_full_as_was_said(rates, simulated):
    best = rates.best_split(REPLICAS)
    load_rps = LOAD * rates.capacity_rps(best, REPLICAS - best)
    _, busy, full = simulated[best]
    assert busy == pytest.approx(load_rps / (best * rates.prefill_rps), abs=0.03)
    assert full == pytest.approx(load_rps / ((REPLICAS - best) * rates.decode_rps), abs=0.06)


def test_a_replica_more_or_less_for_prefill_loses_goodput(rates, simulated):
    best = rates.best_split(REPLICAS)
    fewer, advised, more = (simulated[prefill][0].goodput_rps for prefill in (best - 1, best, best + 1))
    assert advised > 0.9 * LOAD * rates.capacity_rps(best, REPLICAS - best)
    assert advised > 2 * max(fewer, more)


def test_a_pool_that_is_too_small_lets_through_what_was_said(rates, simulated):
    best = rates.best_split(REPLICAS)
    for prefill in (best - 1, best + 1):
        expected = rates.capacity_rps(prefill, REPLICAS - prefill)
        assert simulated[prefill][0].requests_per_s == pytest.approx(expected, rel=0.08)
