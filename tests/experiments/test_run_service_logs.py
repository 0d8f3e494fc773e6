"""The logs in a run's folder: their files, what they say of blocks and moments, and that the analysis reads them."""

import datetime

import polars as pl
import pytest

from nanoserve.analysis.logs.join import join
from nanoserve.analysis.logs.read import open_logs
from nanoserve.analysis.logs.schema import SAMPLE_COLUMNS
from nanoserve.report.run_folder import LOG_BLOCK_TOKENS
from tests.experiments.conftest import Command

pytestmark = pytest.mark.usefixtures("no_plots")
LAB = ("--config=lab_week_baseline", "--set=TraceSource.requests=300", "--set=TraceSource.rate_rps=5.0")


def test_the_sample_has_a_row_a_request_and_the_date_that_was_asked_for(command: Command):
    folder = command(*LAB, "--set=ServiceLogs.start='2026-06-01'").folder
    table = pl.read_parquet(folder / "logs" / "sample.parquet")
    assert tuple(table.columns) == SAMPLE_COLUMNS and table.height == 300
    assert table["timestamp"].dt.date().unique().to_list() == [datetime.date(2026, 6, 1)]


def test_every_file_says_how_many_tokens_a_block_has(command: Command):
    folder = command(*LAB, "--set=Engine.page_tokens=32").folder
    files = list((folder / "logs").iterdir())
    assert len(files) == 5
    assert {pl.read_parquet_metadata(file)[LOG_BLOCK_TOKENS] for file in files} == {"32"}


def test_buckets_are_as_long_as_was_asked_for(command: Command):
    folder = command(*LAB, "--set=ServiceLogs.bucket_s=5").folder
    moments = pl.read_parquet(folder / "logs" / "telemetry.parquet")["timestamp"].unique().sort()
    assert moments.diff().drop_nulls().unique().to_list() == [datetime.timedelta(seconds=5)]


def test_the_analysis_joins_the_logs_of_a_run_without_a_row_left_over(command: Command):
    folder = command(*LAB).folder
    logs = open_logs([folder])
    assert logs.block_tokens == 16 and logs.start == datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)
    table = join(logs).table.select("request_id", "session_id", "status", "error_type").collect()
    assert table.height == table["request_id"].n_unique() == 300
    assert table["session_id"].null_count() == 0
    assert table.filter((pl.col("status") != 200) != pl.col("error_type").is_not_null()).height == 0


def test_no_date_means_no_logs(command: Command):
    assert not (command(*LAB, "--set=ServiceLogs.start=None").folder / "logs").exists()
