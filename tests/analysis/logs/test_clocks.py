"""A clock that is off is found and set right; one that only seems so is left alone, and both are said."""

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nanoserve.analysis.logs.clocks import offset_by_load, offset_by_requests
from nanoserve.analysis.logs.read import open_logs
from tests.analysis.logs.factories import MONDAY

_S = 10**9


def requests(count: int = 200, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    times_ns = np.sort(rng.uniform(0, 20_000, count) * _S).astype(np.int64)
    return pl.DataFrame(
        {
            "time_ns": times_ns,
            "request_id": [f"r{row}" for row in range(count)],
            "prompt_tokens": rng.integers(1, 1000, count),
            "response_tokens": rng.integers(1, 1000, count),
            "latency_s": rng.lognormal(0, 0.5, count),
        }
    )


def errors_of(api: pl.DataFrame, ahead_s: float, noise_s: float = 0.01) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    late_s = api["latency_s"].to_numpy() + ahead_s + rng.normal(0, noise_s, len(api))
    return api.select("request_id", time_ns=pl.col("time_ns") + pl.Series((late_s * _S).astype(np.int64)))


def load_of(api: pl.DataFrame, behind_s: float, width_s: int = 60) -> pl.DataFrame:
    """Buckets of work that follow arriving tokens, by a clock that is so far off."""
    bucket = (pl.col("time_ns") + int(behind_s) * _S) // (width_s * _S) * (width_s * _S)
    tokens = (pl.col("prompt_tokens") + pl.col("response_tokens")).sum().cast(pl.Float64)
    return api.group_by(bucket).agg(running=tokens).sort("time_ns")


@pytest.mark.parametrize("ahead_s", [3600.0, -7200.0, 12.5])
def test_an_offset_is_found_and_beyond_doubt(ahead_s: float):
    api = requests()
    found = offset_by_requests("errors", errors_of(api, ahead_s).lazy(), api.lazy())
    assert found is not None and found.clear
    assert found.seconds == pytest.approx(ahead_s, abs=0.01)
    assert ("ahead of" if ahead_s > 0 else "behind") in found.sentence()


def test_an_offset_within_the_noise_is_reported_and_not_applied():
    api = requests()
    found = offset_by_requests("app", errors_of(api, 1.5, noise_s=3.0).lazy(), api.lazy())
    assert found is not None and not found.clear and "not moved" in found.sentence()


def test_entries_written_when_the_answer_was_there_are_no_clock_that_is_off():
    api = requests()
    found = offset_by_requests("app", errors_of(api, 0.0).lazy(), api.lazy())
    assert found is not None and not found.clear


def test_too_few_requests_in_both_say_nothing():
    api = requests()
    assert offset_by_requests("errors", errors_of(api, 5.0)[:9].lazy(), api.lazy()) is None


@pytest.mark.parametrize("behind_s", [3600, -10_800])
def test_telemetry_of_another_time_zone_is_found_by_its_load(behind_s: int):
    api = requests(3000)
    found = offset_by_load(load_of(api, behind_s).lazy(), api.lazy())
    assert found is not None and found.clear and found.seconds == behind_s


def test_work_that_follows_arrivals_because_requests_are_slow_is_no_clock_that_is_off():
    api = requests(3000).with_columns(latency_s=pl.lit(900.0))
    found = offset_by_load(load_of(api, 600).lazy(), api.lazy())
    assert found is not None and not found.clear


def test_telemetry_of_one_clock_is_left_alone():
    api = requests(3000)
    found = offset_by_load(load_of(api, 0).lazy(), api.lazy())
    assert found is not None and not found.clear and found.seconds == 0.0


def test_telemetry_that_follows_nothing_is_left_alone():
    api = requests(3000)
    rng = np.random.default_rng(5)
    load = load_of(api, 0).with_columns(running=pl.Series(rng.uniform(size=len(load_of(api, 0)))))
    found = offset_by_load(load.lazy(), api.lazy())
    assert found is not None and not found.clear


def test_logs_that_are_read_are_on_one_clock(tmp_path: Path):
    api = requests()
    dated = pl.from_epoch(pl.col("time_ns") + int(MONDAY.timestamp()) * _S, time_unit="ns").alias("timestamp")
    api.select(dated, pl.exclude("time_ns")).write_csv(tmp_path / "api.csv")
    entries = api.select(dated.dt.offset_by("5h"), "request_id", session_id=pl.lit("x"))
    entries.write_parquet(tmp_path / "app.parquet")
    logs = open_logs([tmp_path])
    assert logs.app is not None and any("18,000.000 s ahead" in note and "moved" in note for note in logs.notes)
    assert logs.app.collect()["time_s"].to_numpy() == pytest.approx(logs.api.collect()["time_s"].to_numpy())
    assert logs.start - MONDAY < datetime.timedelta(hours=1)
