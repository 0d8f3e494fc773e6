"""Leak, slow replica and slow interval: what is planted is measured, and what is not is not found."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from nanoserve.analysis.failures.leak import floors, memory_trend
from nanoserve.analysis.failures.looking import looking
from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.failures.queueing import timeouts_by_queue
from nanoserve.analysis.failures.replicas import paces, replica_paces
from tests.analysis.failures.factories import POOL_BLOCKS, Truth, requests_of, service, with_failures

SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leak_is_measured_on_the_replica_that_has_it(seed):
    first, second = floors(service(Truth(seed=seed, leak_blocks=60)))
    assert first.leaks
    assert first.slope.low * 86400 <= 60 <= first.slope.high * 86400 + 1
    assert not second.leaks


@pytest.mark.parametrize("seed", SEEDS)
def test_sessions_that_are_kept_and_let_go_are_no_leak(seed):
    assert not any(floor.leaks for floor in floors(service(Truth(seed=seed))))


def test_a_leak_shows_without_knowing_what_is_written():
    logs = service(Truth(leak_blocks=60))
    assert logs.telemetry is not None
    blind = dataclasses.replace(logs, telemetry=logs.telemetry.drop("used_tokens", "running"))
    assert floors(blind)[0].leaks


def test_the_trend_is_drawn_over_both_replicas():
    finding = memory_trend(service(Truth(leak_blocks=60)))
    assert finding.values["leaking_replicas"] == [0]
    assert finding.values["pool_blocks"] == 2 * POOL_BLOCKS
    assert finding.values["blocks_per_day"] == pytest.approx(60, rel=0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_replica_is_measured(seed):
    normal, slow = paces(Loss(service(Truth(seed=seed, slow=1.5))))
    assert slow.slow
    assert slow.ratio.value == pytest.approx(1.5, rel=0.02)
    assert not normal.slow


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_replicas_are_equal(seed):
    assert not any(pace.slow for pace in paces(Loss(service(Truth(seed=seed)))))


def test_one_replica_has_nobody_to_be_compared_with():
    logs = service(Truth(days=1))
    alone = dataclasses.replace(logs, requests=logs.requests.drop("replica"))
    assert replica_paces(Loss(alone)).missing


@pytest.mark.parametrize("interval_s", [0.05, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_interval_is_measured(seed, interval_s):
    found = looking(Loss(service(Truth(seed=seed, interval_s=interval_s))))
    assert found is not None
    assert found.slow
    assert found.interval.value == pytest.approx(interval_s, rel=0.2)


@pytest.mark.parametrize("seed", SEEDS)
def test_waiting_for_the_step_that_runs_is_no_interval(seed):
    found = looking(Loss(service(Truth(seed=seed))))
    assert found is not None
    assert not found.slow


def test_an_interval_shows_beside_a_slow_replica():
    found = looking(Loss(service(Truth(interval_s=0.2, slow=2.0))))
    assert found is not None
    assert found.interval.value == pytest.approx(0.2, rel=0.2)


def test_few_requests_show_no_interval():
    assert looking(Loss(service(Truth(days=0.05)))) is None


def test_time_outs_are_counted_by_who_was_ahead():
    """All start together on one engine, each is over one second after the one before; the last two time out."""
    logs = requests_of(
        time_s=np.arange(8) * 1e-3,
        prompt_tokens=[9] * 8,
        response_tokens=[9] * 8,
        status=[200] * 6 + [504] * 2,
        latency_s=np.arange(1.0, 9.0),
    )
    finding = timeouts_by_queue(Loss(logs))
    assert finding.series["ahead"].tolist() == [0, 1, 3, 7]
    assert finding.series["requests"].tolist() == [1, 2, 4, 1]
    assert finding.series["timeout_share"].tolist() == [0, 0, 0.25, 1]
    assert (finding.series["timeout_low"] <= finding.series["timeout_share"]).all()
    assert (finding.series["timeout_share"] <= finding.series["timeout_high"] + 1e-12).all()


def test_without_time_outs_it_says_so():
    logs = with_failures(service(Truth(days=0.2)), np.arange(5), 503)
    assert timeouts_by_queue(Loss(logs)).title.startswith("No request timed out")


def test_rows_of_telemetry_may_come_in_any_order():
    logs = service(Truth(leak_blocks=60))
    assert logs.telemetry is not None
    mixed = logs.telemetry.sample(fraction=1.0, shuffle=True, seed=3).sort("time_s", maintain_order=True)
    again = memory_trend(dataclasses.replace(logs, telemetry=mixed.select(pl.all())))
    assert again.values == memory_trend(logs).values
