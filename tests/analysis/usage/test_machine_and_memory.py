"""Use of chips and of KV memory: shares that are planted come out, and what is absent is said to be."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from nanoserve.analysis.service import Service
from nanoserve.analysis.usage.machine import machine_by_hour, machine_by_load
from nanoserve.analysis.usage.memory import kv_memory
from tests.analysis.failures.factories import Truth, requests_of, service
from tests.analysis.logs.factories import MONDAY

HOURS = 48


def with_telemetry(**columns) -> Service:
    """Two days of hourly buckets with these columns."""
    table = pl.DataFrame({"time_s": np.arange(HOURS) * 3600.0, **columns})
    requests = pl.DataFrame({"time_s": np.arange(HOURS) * 1800.0, "prompt_tokens": 9, "response_tokens": 9})
    return Service(start=MONDAY, requests=requests, telemetry=table, block_tokens=16)


def test_each_hour_has_its_own_mean_and_the_peak_leaves_the_rest():
    hour = np.arange(HOURS) % 24
    finding = machine_by_hour(with_telemetry(compute=hour / 100, bandwidth=hour / 50))
    assert finding.series["bandwidth"] == pytest.approx(np.arange(24) / 50)
    assert finding.values["scarcer"] == "bandwidth"
    assert finding.values["busiest_hour"] == 23
    assert finding.values["headroom_at_peak"] == pytest.approx(1 - 0.46, abs=0.01)


def test_what_each_running_request_takes_is_the_slope():
    running = np.arange(HOURS) % 7
    finding = machine_by_load(
        with_telemetry(compute=0.1 + 0.01 * running, bandwidth=0.2 + 0.03 * running, running=running)
    )
    assert finding.values["compute_per_request"] == pytest.approx(0.01)
    assert finding.values["bandwidth_per_request"] == pytest.approx(0.03)
    assert finding.series["buckets"].sum() == finding.rows == np.count_nonzero(running)


def test_load_is_counted_from_arrivals_where_telemetry_does_not_know_it():
    finding = machine_by_load(with_telemetry(compute=np.full(HOURS, 0.1), bandwidth=np.full(HOURS, 0.2)))
    assert finding.values["load_unit"] == "arrival in a bucket"
    assert finding.rows == HOURS / 2  # two arrivals an hour, for a day


@pytest.mark.parametrize("analysis", [machine_by_hour, machine_by_load])
def test_without_telemetry_it_says_what_is_missing(analysis):
    assert analysis(requests_of(time_s=[0.0], prompt_tokens=[1], response_tokens=[1])).missing


def test_hours_of_logs_without_a_date_mean_nothing():
    assert machine_by_hour(dataclasses.replace(service(Truth(days=1)), dated=False)).missing


def test_both_fragmentations_are_shares_of_what_is_held_and_of_what_is_free():
    ones = np.ones(HOURS)
    finding = kv_memory(
        with_telemetry(
            blocks_used=400 * ones,
            blocks_total=1000 * ones,
            used_tokens=100 * 16 * ones,
            largest_free_run_blocks=150 * ones,
        )
    )
    assert finding.values["kv_utilization"] == pytest.approx(0.25)
    assert finding.values["internal_share"] == pytest.approx(0.75)
    assert finding.values["external_share"] == pytest.approx(0.75)
    assert finding.series["held"].tolist() == [400] * HOURS


def test_replicas_are_added_up_over_time():
    finding = kv_memory(service(Truth(days=2)))
    assert finding.series["free"][0] + finding.series["held"][0] == pytest.approx(2000)


def test_requests_tell_it_where_there_is_no_telemetry():
    logs = requests_of(
        time_s=[0.0, 1.0], prompt_tokens=[1, 1], response_tokens=[1, 1], allocated_blocks=[10, 10], used_tokens=[40, 40]
    )
    finding = kv_memory(logs)
    assert finding.values["kv_utilization"] == pytest.approx(0.25)
    assert finding.rows == 2


def test_an_unknown_block_size_is_asked_for():
    logs = dataclasses.replace(service(Truth(days=1)), block_tokens=None)
    assert "how many tokens a block has" in str(kv_memory(logs).missing)
