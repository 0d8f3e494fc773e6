"""Whatever a file calls its columns, however it writes its times, and whatever is wrong with it."""

import datetime
import gzip
import json
import zoneinfo
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nanoserve.analysis.logs import schema
from nanoserve.analysis.logs.join import join
from nanoserve.analysis.logs.read import open_logs
from nanoserve.analysis.logs.scratch import Scratch, count
from nanoserve.specs.errors import ConfigError, TraceError
from tests.trace.factories import shared

HEADER = "timestamp,request_id,prompt_tokens,response_tokens,status,latency_s"
MORNING = datetime.datetime(2026, 3, 2, 8, tzinfo=datetime.UTC)


def api(count: int = 4, **columns) -> pl.DataFrame:
    """An api log: a request a second, 100 tokens in, 50 out in a second."""
    filled = {
        "timestamp": [MORNING + datetime.timedelta(seconds=second) for second in range(count)],
        "request_id": [f"r{row}" for row in range(count)],
        "prompt_tokens": [100] * count,
        "response_tokens": [50] * count,
        "status": [200] * count,
        "latency_s": [1.0] * count,
    }
    return pl.DataFrame(filled | columns)


def saved(folder: Path, frame: pl.DataFrame, name: str = "api.parquet") -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        frame.write_parquet(path)
    elif name.endswith(".csv"):
        frame.write_csv(path)
    else:
        frame.write_ndjson(path)
    return path


def text_file(folder: Path, text: str, name: str = "api.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["api.parquet", "api.csv", "api.jsonl"])
def test_a_log_is_the_same_in_every_format(tmp_path: Path, name: str):
    logs = open_logs([saved(tmp_path, api(), name)])
    table = logs.api.collect()
    assert table["time_s"].to_list() == [0.0, 1.0, 2.0, 3.0]
    assert table.schema["status"] == pl.Int32 and table["latency_s"].to_list() == [1.0] * 4
    assert logs.start == MORNING and logs.dated


def test_a_packed_file_is_read(tmp_path: Path):
    path = tmp_path / "api.csv.gz"
    path.write_bytes(gzip.compress(f"{HEADER}\n2026-03-02 08:00:00Z,a,1,2,200,0.5\n".encode()))
    assert count(open_logs([path]).api) == 1


def test_names_of_other_services_are_known(tmp_path: Path):
    path = text_file(
        tmp_path, "created_at;usage.input_tokens;usage.output_tokens;HTTPStatus;Latency (ms)\n1772438400;7;9;ok;250\n"
    )
    logs = open_logs([path])
    row = logs.api.collect().row(0, named=True)
    assert row == {"time_s": 0.0, "prompt_tokens": 7, "response_tokens": 9, "status": 200, "latency_s": 0.25}
    assert any("can only be s since 1970" in note for note in logs.notes)
    assert any("usage.input_tokens as prompt_tokens" in note for note in logs.notes)


def test_keys_within_json_objects_are_columns(tmp_path: Path):
    row = {"timestamp": "2026-03-02T08:00:00Z", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    logs = open_logs([text_file(tmp_path, json.dumps(row) + "\n", "api.jsonl")])
    assert logs.api.select("prompt_tokens", "response_tokens").collect().row(0) == (3, 4)


def test_lines_that_are_no_json_are_rows_that_cannot_be_read(tmp_path: Path):
    good = {"timestamp": "2026-03-02T08:00:00Z", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    text = "".join(f"{line}\n" for line in (json.dumps(good), "not json", "", json.dumps(good), '{"timestamp": "20'))
    logs = open_logs([text_file(tmp_path, text, "api.jsonl")])
    assert (logs.counts["api_read"], logs.counts["api_set_aside_unreadable"]) == (4, 2)
    assert logs.api.select("prompt_tokens").collect().to_series().to_list() == [3, 3]


@pytest.mark.parametrize(
    ("written", "offset_s"),
    [
        ("2026-03-02T08:00:00Z", 0),
        ("2026-03-02 08:00:00.250000000+00:00", 0.25),
        ("2026-03-02T13:30:00+05:30", 0),
        ("2026-03-02T03:00:00-0500", 0),
        ("1772438400.5", 0.5),
        ("1772438400500", 0.5),
        ("1772438400500000", 0.5),
        ("1772438400500000000", 0.5),
    ],
)
def test_one_moment_written_in_many_ways_is_one_moment(tmp_path: Path, written: str, offset_s: float):
    logs = open_logs([text_file(tmp_path, f"{HEADER}\n{written},a,1,2,200,0.5\n")])
    at = logs.start + datetime.timedelta(seconds=logs.api.collect()["time_s"][0])
    assert at == MORNING + datetime.timedelta(seconds=offset_s)


def test_a_naive_time_is_utc_and_said_so(tmp_path: Path):
    logs = open_logs([text_file(tmp_path, f"{HEADER}\n2026-03-02 08:00:00,a,1,2,200,0.5\n")])
    assert logs.start == MORNING and any("read as UTC" in note for note in logs.notes)


def test_a_naive_time_is_of_the_zone_that_is_named(tmp_path: Path):
    path = text_file(tmp_path, f"{HEADER}\n2026-03-02 03:00:00,a,1,2,200,0.5\n")
    logs = open_logs([path], time_zone="America/New_York")
    assert logs.start == MORNING and logs.start.tzinfo == zoneinfo.ZoneInfo("America/New_York")


def test_hours_that_a_clock_skipped_or_repeated_are_counted(tmp_path: Path):
    rows = ["2026-03-08 01:59:59", "2026-03-08 02:30:00", "2026-03-08 03:30:00", "2026-11-01 01:30:00"]
    path = text_file(tmp_path, HEADER + "".join(f"\n{time},{time},1,2,200,0.5" for time in rows) + "\n")
    logs = open_logs([path], time_zone="America/New_York")
    assert logs.api.collect()["time_s"].to_list()[:3] == [0.0, 1801.0, 1801.0]
    assert any(note.startswith("api.csv: 1 time of") and "skipped" in note for note in logs.notes)
    assert any(note.startswith("api.csv: 1 time of") and "twice" in note for note in logs.notes)


@pytest.mark.parametrize(
    ("column", "values", "asked"),
    [
        ("latency", [1500.0] * 4, ["1,500 s as s", "1.5 s as ms", "units={'latency': 'ms'}", "--units=latency=ms"]),
        ("timestamp", [0, 1, 2, 3600], ["1 h as s", "3.6 s as ms", "--units=timestamp=s"]),
    ],
)
def test_a_unit_that_no_name_says_is_asked_for(tmp_path: Path, column: str, values: list, asked: list[str]):
    frame = api().drop("latency_s").with_columns(pl.Series(column, values))
    path = saved(tmp_path, frame)
    with pytest.raises(TraceError) as error:
        open_logs([path])
    assert all(text in str(error.value) for text in asked), str(error.value)
    assert count(open_logs([path], units={column: "ms"}).api) == 4


def test_a_stated_unit_is_used(tmp_path: Path):
    frame = api().rename({"latency_s": "latency"}).with_columns(latency=pl.lit(1500.0))
    assert open_logs([saved(tmp_path, frame)], units={"latency": "ms"}).api.collect()["latency_s"][0] == 1.5


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"latency_s": "parsec"}, "parsec is no unit of latency_s"),
        ({"latncy_s": "ms"}, "Did you mean 'latency_s'"),
        ({"status": "ms"}, "does not apply"),
    ],
)
def test_a_unit_that_cannot_be_is_refused(tmp_path: Path, units: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        open_logs([saved(tmp_path, api())], units=units)


def test_milliseconds_that_are_named_seconds_are_asked_about(tmp_path: Path):
    path = saved(tmp_path, api(40, latency_s=[1000.0] * 40))
    with pytest.raises(TraceError, match=r"20 s for each token.*units=\{'latency_s': 'ms'\}"):
        open_logs([path])
    assert open_logs([path], units={"latency_s": "ms"}).api.collect()["latency_s"][0] == 1.0


def test_a_column_that_mixes_milliseconds_and_seconds_is_asked_about(tmp_path: Path):
    rng = np.random.default_rng(1)
    latency_s = rng.lognormal(0, 0.3, 400)
    latency_s[::4] *= 1000
    path = saved(tmp_path, api(400, latency_s=latency_s))
    with pytest.raises(TraceError, match=r"25\.0% of the requests is about a thousand times"):
        open_logs([path])
    assert count(open_logs([path], units={"latency_s": "s"}).api) == 400


def test_slow_requests_are_no_mix_of_units(tmp_path: Path):
    latency_s = np.random.default_rng(1).lognormal(0, 2.5, 400)
    assert count(open_logs([saved(tmp_path, api(400, latency_s=latency_s))]).api) == 400


def test_missing_columns_are_named_with_what_is_there(tmp_path: Path):
    path = text_file(tmp_path, "timestamp,promt_tokens,response_tokens\n2026-03-02T08:00,1,2\n")
    with pytest.raises(TraceError) as error:
        open_logs([path])
    for text in ("has no prompt_tokens", "Did you mean 'promt_tokens'", "'timestamp', 'promt_tokens'", "as time_s"):
        assert text in str(error.value)
    assert count(open_logs([path], columns={"prompt_tokens": "promt_tokens"}).api) == 1


def test_logs_without_an_api_log_are_refused(tmp_path: Path):
    path = saved(tmp_path, pl.DataFrame({"timestamp": [MORNING], "error_type": ["Timeout"]}), "errors.parquet")
    with pytest.raises(TraceError, match=r"no api log.*errors\.parquet is the errors log"):
        open_logs([path])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "empty"),
        ("array.json", "[1]", "one JSON array"),
        (
            "bad.csv",
            f"{HEADER}\n2026-03-02T08:00,a,none,2,200,0.5\n",
            "no request that can be analysed: 1 row set aside",
        ),
        ("header.csv", f"{HEADER}\n", "empty in every row"),
        ("words.csv", "timestamp,prompt_tokens,response_tokens\nnever,1,2\n", "wanted a number or a date"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, name: str, content: str, message: str):
    with pytest.raises(TraceError, match=message):
        open_logs([text_file(tmp_path, content, name)])


def test_a_missing_file_names_the_nearest(tmp_path: Path):
    saved(tmp_path, api())
    with pytest.raises(TraceError, match=r"Did you mean 'api\.parquet'"):
        open_logs([tmp_path / "api.parqet"])


def test_a_cut_parquet_file_is_an_error_of_the_user(tmp_path: Path):
    path = saved(tmp_path, api())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TraceError, match="cannot be read"):
        open_logs([path])


def test_a_zone_that_is_none_names_the_nearest(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"Did you mean 'Europe/Berlin'"):
        open_logs([saved(tmp_path, api())], time_zone="Europe/Berln")


def test_percent_and_shares_are_told_apart(tmp_path: Path):
    times = [MORNING, MORNING + datetime.timedelta(minutes=1)]
    frame = pl.DataFrame({"timestamp": times, "gpu_util": [97.0, 41.0], "memory.used [MiB]": [1024, 2048]})
    logs = open_logs([saved(tmp_path, api()), saved(tmp_path, frame, "gpu.csv")])
    assert logs.telemetry is not None
    compute, memory_bytes = logs.telemetry.select("compute", "memory_bytes").collect()
    assert compute.to_list() == pytest.approx([0.97, 0.41]) and memory_bytes.to_list() == [2.0**30, 2.0**31]
    assert any("read as percent" in note for note in logs.notes)


def test_words_stand_for_statuses_and_others_for_none(tmp_path: Path):
    logs = open_logs([saved(tmp_path, api(status=["OK", "timeout", "503", "weird"]), "api.csv")])
    assert logs.api.collect()["status"].to_list() == [200, 504, 503, None]
    assert any("1 cell of status cannot be read as status; the first is 'weird'" in note for note in logs.notes)


def test_means_of_a_bucket_need_not_be_whole(tmp_path: Path):
    times = [MORNING, MORNING + datetime.timedelta(minutes=1)]
    frame = pl.DataFrame({"timestamp": times, "used_tokens": [10.5, 11.25], "queue": [1, 2]})
    for name in ("t.parquet", "t.csv"):
        logs = open_logs([saved(tmp_path, api()), saved(tmp_path, frame, name)])
        assert logs.telemetry is not None
        assert logs.telemetry.select("used_tokens").collect().to_series().to_list() == [10.5, 11.25]
        assert logs.telemetry.collect_schema() == {
            name: schema.TELEMETRY_COLUMNS[name][0] for name in logs.telemetry.collect_schema()
        }


def test_a_log_without_times_stands_beside_one_without_dates(tmp_path: Path):
    trace = text_file(tmp_path, "arrival_s,prompt_tokens,response_tokens,session_id\n0,1,2,x\n3,1,2,y\n")
    users = text_file(tmp_path, "session_id,user_id\nx,ann\n", "app.csv")
    joined = join(open_logs([trace, users], columns={"time_s": "arrival_s"}))
    assert not joined.logs.dated and joined.take("user_id").to_series().to_list() == ["ann", None]


def test_dates_beside_seconds_from_zero_are_refused(tmp_path: Path):
    saved(tmp_path, api())
    text_file(tmp_path, "time_s,error_type\n0,Timeout\n", "errors.csv")
    with pytest.raises(TraceError, match=r"api\.parquet has dates and errors\.csv counts from zero"):
        open_logs([tmp_path])


def test_replicas_with_names_are_numbered_alike_in_all_logs(tmp_path: Path):
    times = [MORNING, MORNING + datetime.timedelta(minutes=1)]
    frame = pl.DataFrame({"timestamp": times, "host": ["gpu-b", "gpu-c"], "compute": [0.5, 0.6]})
    logs = open_logs(
        [saved(tmp_path, api(host=["gpu-b", "gpu-a", "gpu-b", "gpu-a"])), saved(tmp_path, frame, "t.parquet")]
    )
    assert logs.telemetry is not None
    assert logs.api.collect()["replica"].to_list() == [1, 0, 1, 0]
    assert logs.telemetry.collect()["replica"].to_list() == [1, 2]


def test_several_files_of_a_kind_are_one_log(tmp_path: Path):
    first, second = (
        api(4),
        api(4, request_id=[f"s{row}" for row in range(4)]).with_columns(pl.col("timestamp").dt.offset_by("1h")),
    )
    logs = open_logs([saved(tmp_path, second, "b.parquet"), saved(tmp_path, first, "a.csv")])
    assert logs.api.collect()["time_s"].to_list() == [0, 1, 2, 3, 3600, 3601, 3602, 3603]


def test_a_file_larger_than_memory_is_read_alike(tmp_path: Path):
    rng = np.random.default_rng(3)
    frame = api(500, prompt_tokens=rng.integers(1, 9999, 500)).sample(fraction=1.0, shuffle=True, seed=2)
    frame = pl.concat([frame, frame[:7]])
    for name in ("api.parquet", "api.csv", "api.jsonl"):
        path = saved(tmp_path, frame, name)
        small, large = open_logs([path]), open_logs([path], scratch=Scratch(rows_in_memory=64))
        assert small.api.collect().equals(large.api.collect()), name
        assert small.counts == large.counts


def test_mooncake_hashes_stay_beside_the_requests():
    logs = open_logs([shared("mooncake_conversation_trace.jsonl")])
    assert logs.prefixes is not None and len(logs.prefixes) == count(logs.api) == 12_031
    assert logs.prefix_block_tokens == 512 and not logs.dated


def test_azure_times_keep_their_dates_and_their_digits():
    logs = open_logs([shared("AzureLLMInferenceTrace_conv_2023.csv")])
    assert logs.start == datetime.datetime(2023, 11, 16, 18, 15, 46, tzinfo=datetime.UTC)
    assert logs.api.collect()["time_s"][0] == 0.68059 and count(logs.api) == 19_366


def test_a_run_that_kept_no_logs_says_so(tmp_path: Path):
    api().write_parquet(tmp_path / "steps.parquet")
    with pytest.raises(TraceError, match="kept no logs"):
        open_logs([tmp_path])


def test_a_runs_folder_stands_for_its_four_logs_and_its_block_size(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "operative.gin").write_text("Engine.page_tokens = 32\n")
    for name in ("api.parquet", "sample.parquet"):
        saved(tmp_path / "logs", api(), name)
    logs = open_logs([tmp_path])
    assert count(logs.api) == 4 and logs.block_tokens == 32


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame(schema={"timestamp": pl.Datetime("us", "UTC"), "request_id": pl.String, "error_type": pl.String}),
        pl.DataFrame(schema={"timestamp": pl.Datetime("us", "UTC"), "queue": pl.Float64}),
        pl.DataFrame(schema={"timestamp": pl.Datetime("us", "UTC"), "request_id": pl.String, "session_id": pl.String}),
    ],
)
def test_a_log_without_entries_is_joined_like_any_other(tmp_path: Path, frame: pl.DataFrame):
    joined = join(open_logs([saved(tmp_path, api()), saved(tmp_path, frame, "other.parquet")]))
    assert joined.rows == 4 and joined.start == MORNING
    assert sum(number for name, number in joined.counts.items() if name.endswith("requests_without")) == 4
