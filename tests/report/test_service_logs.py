"""The logs that a service would have left: nothing of a run is lost in them, and their columns are those we read."""

import datetime
import functools
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from experiments.run_service_logs import machine_of, service_logs_of
from nanoserve.analysis.logs import schema
from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import Cluster, Experiment, FleetConfig, ServiceLogs
from nanoserve.replay import Records, Replay, prepare
from nanoserve.report import service_logs
from nanoserve.report.service_logs import as_file, sample
from nanoserve.report.service_telemetry import AMBIENT_C, FULL_POWER_C, temperature_c
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.source import TraceSource

BUCKET_S = 7.0
PAGES = 1000
START = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)
REQUESTS = 600
ROUNDING = 1e-9  # relative; sums of doubles in another order


class Run(NamedTuple):
    """A run and its logs."""

    replay: Replay
    records: Records
    logs: dict[str, pl.DataFrame]


@functools.cache
def run_of(replicas: int = 2, keep_session_s: float = 5.0, preset: str = "chatbot_week") -> Run:
    """A crowded minute in which requests fail for want of memory, time out, and are turned away."""
    engine = EngineConfig(
        num_pages=PAGES, max_seqs=6, allocator="contiguous", when_full="fail", keep_session_s=keep_session_s,
        timeout_s=1.5, max_context_tokens=3000,
    )  # fmt: skip
    experiment = Experiment(
        executor="roofline",
        cluster=Cluster(mesh={"data": replicas, "tensor": 1}),
        engine=engine,
        fleet=FleetConfig(router="session_affinity"),
        trace=TraceSource(preset=preset, requests=REQUESTS, rate_rps=8.0, stated_limit_tokens=1024, seed=1),
        service_logs=ServiceLogs(start="2026-03-02", bucket_s=BUCKET_S),
    )
    replay = prepare(experiment)
    replay.run()
    records = replay.records()
    return Run(replay, records, service_logs_of(replay, records))


def test_the_names_are_those_that_are_read():
    tables = {"api": service_logs.API, "telemetry": service_logs.TELEMETRY, "app": service_logs.APP}
    for name, columns in (tables | {"errors": service_logs.ERRORS}).items():
        assert set(columns) == set(schema.COLUMNS[name])
        assert tuple(run_of().logs[name].columns) == columns
    assert service_logs.SAMPLE == schema.SAMPLE_COLUMNS


def test_the_types_are_those_that_are_read():
    for name, table in run_of().logs.items():
        assert dict(table.schema) == {column: schema.COLUMNS[name][column][0] for column in table.columns}


def test_every_request_is_in_the_api_and_application_logs_once():
    run = run_of()
    for name in ("api", "app"):
        assert run.logs[name]["request_id"].n_unique() == run.logs[name].height == run.records.requests.height
    assert run.logs["api"]["time_s"].is_sorted() and run.logs["app"]["time_s"].is_sorted()
    assert run.logs["api"]["prompt_tokens"].sum() == run.records.requests["prompt_tokens"].sum()


def test_every_failed_request_has_exactly_one_error():
    run = run_of()
    failed = run.logs["api"].filter(pl.col("status") != 200)
    assert sorted(failed["request_id"]) == sorted(run.logs["errors"]["request_id"])
    kinds = dict(zip(failed["request_id"], failed["status"], strict=True))
    of_kind = {"OutOfMemory": 503, "Timeout": 504, "Refused": 429}
    assert set(run.logs["errors"]["error_type"]) == set(of_kind)  # or the run would not test what it is meant to
    for row in run.logs["errors"].iter_rows(named=True):
        assert kinds[row["request_id"]] == of_kind[row["error_type"]]
        assert row["traceback"].startswith("Traceback (most recent call last):\n")


def test_an_out_of_memory_error_ends_in_what_the_engine_saw():
    run = run_of()
    errors = run.logs["errors"].filter(pl.col("error_type") == "OutOfMemory")
    last = {text.splitlines()[-1] for text in errors["traceback"]}
    details = run.records.requests.filter(pl.col("finish_reason") == "out_of_memory")["detail"]
    assert last == {f"OutOfMemoryError: {detail}" for detail in details}
    assert all("tried to allocate" in line and f"of {PAGES} free" in line for line in last)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(("share", "column"), [("compute", "mfu"), ("bandwidth", "mbu")])
def test_sums_of_telemetry_are_sums_of_the_plans(replicas, share, column):
    run = run_of(replicas)
    steps = run.records.steps.with_columns((pl.col(column) * pl.col("duration_s")).alias("busy"))
    assert run.logs["telemetry"]["replica"].n_unique() == replicas
    for replica in range(replicas):
        seen = run.logs["telemetry"].filter(pl.col("replica") == replica)
        plans = steps.filter(pl.col("replica") == replica) if replicas > 1 else steps
        assert float(seen[share].sum()) * BUCKET_S == pytest.approx(plans["busy"].sum(), rel=ROUNDING)
        assert seen[share].min() >= 0 and seen[share].max() <= 1


def test_queue_and_running_are_means_over_time():
    run = run_of()
    steps = run.records.steps
    for column, level in (("queue", "waiting"), ("running", "running")):
        seconds = (steps[level] * steps["duration_s"]).sum()
        assert float(run.logs["telemetry"][column].sum()) * BUCKET_S == pytest.approx(seconds, rel=ROUNDING)


def test_occupancy_is_that_of_the_last_plan_before_the_end_of_the_bucket():
    run = run_of()
    for replica in (0, 1):
        plans = run.records.steps.filter(pl.col("replica") == replica)
        for row in run.logs["telemetry"].filter(pl.col("replica") == replica).iter_rows(named=True):
            before = plans.filter(pl.col("start_s") <= row["time_s"] + BUCKET_S)
            held, tokens = (before["pages_used"][-1], before["kv_tokens_held"][-1]) if before.height else (0, 0)
            assert (row["blocks_used"], row["used_tokens"]) == (held, tokens)


def test_without_kept_sessions_an_idle_machine_holds_nothing():
    run = run_of(1, keep_session_s=0.0)
    plans, telemetry = run.records.steps, run.logs["telemetry"]
    ends = telemetry["time_s"].to_numpy() + BUCKET_S
    begin, over = plans["start_s"].to_numpy(), (plans["start_s"] + plans["duration_s"]).to_numpy()
    busy = [bool(((begin <= end) & (over > end)).any()) for end in ends.tolist()]
    idle = telemetry.filter(~pl.Series(busy))
    assert 0 < idle.height < telemetry.height
    assert idle["blocks_used"].to_list() == idle["used_tokens"].to_list() == [0.0] * idle.height
    assert set(idle["largest_free_run_blocks"]) == {float(PAGES)}


def test_memory_is_what_is_always_held_and_the_blocks():
    run = run_of()
    machine = machine_of(run.replay.members[0], leaks=False)
    telemetry = run.logs["telemetry"]
    kv_bytes = telemetry["memory_bytes"] - machine.held_bytes
    np.testing.assert_allclose(kv_bytes, telemetry["blocks_used"] * machine.page_bytes, atol=1.0)
    assert (telemetry["memory_bytes"] <= telemetry["memory_total_bytes"]).all()
    model = run.replay.facts.model
    token_bytes = 2 * model.layers * model.kv_heads * model.head_size * 2  # keys and values in bfloat16
    assert machine.page_bytes == 16 * token_bytes


def test_a_chip_warms_towards_the_temperature_of_its_load_and_cools_again():
    activity = np.repeat([0.0, 1.0, 0.0], 40)
    found = temperature_c(activity, 60.0)
    assert (np.diff(found[40:80]) >= 0).all() and (np.diff(found[80:]) <= 0).all()
    assert found[0] == pytest.approx(found[-1], abs=0.01)
    assert found[0] > AMBIENT_C and found[79] == pytest.approx(FULL_POWER_C, abs=0.01)


def test_a_buckets_length_does_not_change_where_temperature_goes():
    coarse, fine = temperature_c(np.ones(10), 60.0), temperature_c(np.ones(60), 10.0)
    np.testing.assert_allclose(coarse, fine[5::6])


def test_the_sample_has_a_row_for_every_request_and_times_of_the_calendar():
    run = run_of()
    table = sample(run.logs["api"], run.logs["app"], START)
    assert tuple(table.columns) == schema.SAMPLE_COLUMNS and table.height == REQUESTS
    assert table["timestamp"].dtype == pl.Datetime("us", "UTC") and table["timestamp"].is_sorted()
    since_s = (table["timestamp"] - START).dt.total_microseconds() / 1e6
    np.testing.assert_allclose(since_s, run.logs["api"]["time_s"], atol=1e-6)
    assert table["session_id"].n_unique() == len(set(np.asarray(run.replay.trace.session).tolist()))
    assert not table.null_count().sum_horizontal().item()


def test_a_trace_without_people_has_logs_without_them():
    app = run_of(1, 0.0, "azure_conversation").logs["app"]
    assert app["request_id"].null_count() == 0
    assert all(app[name].null_count() == app.height for name in ("user_id", "session_id", "turn", "region"))


def test_moments_begin_at_the_start_in_universal_time():
    log = pl.DataFrame({"time_s": [0.0, 1.5], "value": [1, 2]})
    zone = datetime.timezone(datetime.timedelta(hours=2))
    moments = as_file(log, datetime.datetime(2026, 3, 2, 2, tzinfo=zone))["timestamp"].to_list()
    assert moments == [START, START + datetime.timedelta(seconds=1.5)]


@pytest.mark.parametrize("start", ["monday", "2026-13-01", ""])
def test_a_start_that_is_no_date_is_refused(start):
    with pytest.raises(ConfigError, match=r"ServiceLogs\.start"):
        ServiceLogs(start=start)


def test_a_bucket_must_last():
    with pytest.raises(ConfigError, match=r"ServiceLogs\.bucket_s"):
        ServiceLogs(bucket_s=0.0)
