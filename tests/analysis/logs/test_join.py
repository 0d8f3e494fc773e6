"""Joins lose nothing: what went in is matched or counted as unmatched, on both sides."""

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings

from nanoserve.analysis.logs.join import join
from nanoserve.analysis.logs.log_set import Joined, LogSet
from tests.analysis.logs.factories import MONDAY

IDS = st.sampled_from([None, "a", "b", "c", "d"])
UNIQUE_IDS = st.lists(st.sampled_from("abcd"), unique=True).map(lambda ids: [*ids, None])


def api(ids: list[str | None], **columns) -> pl.LazyFrame:
    count = len(ids)
    filled = {
        "time_s": [float(second) for second in range(count)],
        "request_id": pl.Series(ids, dtype=pl.String),
        "prompt_tokens": [1] * count,
        "response_tokens": [1] * count,
    }
    return pl.DataFrame(filled | columns).lazy()


def app(ids: list[str | None], **columns) -> pl.LazyFrame:
    filled = {"request_id": pl.Series(ids, dtype=pl.String), "session_id": [f"s{row}" for row in range(len(ids))]}
    return pl.DataFrame(filled | columns).lazy()


def errors(ids: list[str | None]) -> pl.LazyFrame:
    times = [float(row) for row in range(len(ids))]
    return pl.DataFrame(
        {"time_s": times, "request_id": ids, "error_type": [f"E{row}" for row in range(len(ids))]},
        schema={"time_s": pl.Float64, "request_id": pl.String, "error_type": pl.String},
    ).lazy()


def telemetry(times_s: list[float], **columns) -> pl.LazyFrame:
    return pl.DataFrame(
        {"time_s": np.array(times_s, float), "queue": np.arange(len(times_s), dtype=float)} | columns
    ).lazy()


def joined(api_log: pl.LazyFrame, **logs) -> Joined:
    return join(LogSet(start=MONDAY, api=api_log, **logs))


@given(UNIQUE_IDS, UNIQUE_IDS, st.lists(IDS, max_size=8), st.lists(st.integers(-100, 600), unique=True, max_size=6))
@settings(max_examples=30)
def test_every_row_of_every_log_is_counted_once(requests, entries, failed, buckets):
    buckets = sorted(buckets)
    result = joined(api(requests), app=app(entries), errors=errors(failed), telemetry=telemetry(buckets))
    counts, rows = result.counts, {"app": len(entries), "errors": len(failed)}
    assert result.rows == len(requests) == len(result.table.collect())
    for log, number in rows.items():
        parts = ("rows_matched", "rows_further", "rows_unmatched", "rows_without_id")
        assert sum(counts[f"{log}_{part}"] for part in parts) == number
        assert counts[f"{log}_requests_matched"] + counts[f"{log}_requests_without"] == len(requests)
    assert counts["telemetry_buckets_matched"] + counts["telemetry_buckets_without"] == len(buckets)
    assert counts["telemetry_requests_matched"] + counts["telemetry_requests_without"] == len(requests)


@given(UNIQUE_IDS, UNIQUE_IDS)
@settings(max_examples=40)
def test_a_request_gets_what_its_id_says_and_nothing_else(requests, entries):
    table = joined(api(requests), app=app(entries)).table.collect()
    said = {name: f"s{row}" for row, name in enumerate(entries) if name is not None}
    assert table["session_id"].to_list() == [said.get(name) if name else None for name in requests]


def test_a_request_with_two_errors_is_one_row_with_the_first():
    result = joined(api(["a", "b"]), errors=errors(["b", "b", None, "x"]))
    assert result.table.collect()["error_type"].to_list() == [None, "E0"]
    found = {name: result.counts[f"errors_rows_{name}"] for name in ("matched", "further", "unmatched", "without_id")}
    assert found == {"matched": 1, "further": 1, "unmatched": 1, "without_id": 1}


def test_an_application_that_names_no_request_joins_on_the_session():
    requests = api(["a", "b", "c"], session_id=["x", "y", "x"])
    entries = pl.DataFrame({"session_id": ["x", "z"], "region": ["eu", "us"]}).lazy()
    result = joined(requests, app=entries)
    assert result.table.collect()["region"].to_list() == ["eu", None, "eu"]
    assert (result.counts["app_rows_matched"], result.counts["app_rows_unmatched"]) == (1, 1)
    assert result.counts["app_requests_matched"] == 2


def test_a_request_gets_the_bucket_in_which_it_arrived():
    times_s = [0.0, 59.9, 60.1, 100.0, 119.9]
    result = joined(api(list("abcde"), time_s=times_s), telemetry=telemetry([0, 60]))
    assert result.table.collect()["bucket_queue"].to_list() == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_a_request_far_from_any_bucket_has_none():
    result = joined(api(["a", "b"], time_s=[30.0, 500.0]), telemetry=telemetry([0, 60]))
    assert result.table.collect()["bucket_queue"].to_list() == [0.0, None]


def test_a_bucket_is_of_the_requests_own_replica():
    log = telemetry([0, 0, 60, 60], replica=[0, 1, 0, 1])
    result = joined(api(["a", "b"], time_s=[70.0, 71.0], replica=[1, 0]), telemetry=log)
    assert result.table.collect()["bucket_queue"].to_list() == [3.0, 2.0]


def test_logs_that_share_no_key_are_counted_as_unmatched():
    result = joined(api(["a"]).drop("request_id"), app=app(["a", "b"]))
    assert (result.counts["app_rows_unmatched"], result.counts["app_requests_without"]) == (2, 1)


def test_batches_are_the_table_in_order():
    result = joined(api([f"r{row}" for row in range(10)]))
    batches = list(result.batches("time_s", rows=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert pl.concat(batches).equals(result.take("time_s"))


@pytest.mark.parametrize("columns", [("time_s",), ("prompt_tokens", "time_s")])
def test_only_the_columns_that_are_asked_for_are_taken(columns):
    assert joined(api(["a"])).take(*columns).columns == list(columns)
