"""The log that the benchmark makes large, and what it says when it has none to begin with."""

import datetime
from pathlib import Path

import polars as pl
import pytest

from experiments.bench.analyze import main, write_large


def sample(folder: Path, rows: int = 50) -> Path:
    start = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)
    table = pl.DataFrame(
        {
            "timestamp": [start + datetime.timedelta(minutes=minute) for minute in range(rows)],
            **{name: [f"{name}{row // 2}" for row in range(rows)] for name in ("user_id", "session_id")},
            "request_id": [f"r{row}" for row in range(rows)],
            "prompt_tokens": list(range(1, rows + 1)),
        }
    )
    table.write_parquet(folder / "sample.parquet")
    return folder / "sample.parquet"


def test_a_large_log_repeats_nothing_but_lengths(tmp_path: Path):
    path = sample(tmp_path)
    write_large(path, 220, tmp_path / "large.parquet")
    large, small = pl.read_parquet(tmp_path / "large.parquet"), pl.read_parquet(path)
    assert len(large) == 220 and large["timestamp"].is_sorted()
    assert large["request_id"].n_unique() == 220 and large["session_id"].n_unique() == 110
    assert large["timestamp"].n_unique() == 220
    assert set(large["prompt_tokens"]) == set(small["prompt_tokens"])
    assert large.schema == small.schema


@pytest.mark.parametrize("flags", [[], ["--run=nowhere"]])
def test_without_a_run_it_says_how_to_make_one(flags: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["analyze.py", *flags]) == 2
    assert "lab_week_baseline" in capsys.readouterr().err
