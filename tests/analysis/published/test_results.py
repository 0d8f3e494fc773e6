"""The table of published results is read as it stands."""

import pytest

from nanoserve.analysis.published.results import COLUMNS, read_published
from nanoserve.specs.errors import TraceError


def write(tmp_path, *rows: dict[str, str], columns=COLUMNS):
    path = tmp_path / "published.csv"
    lines = [",".join(columns), *(",".join(row.get(column, "") for column in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_figures_become_numbers_in_seconds_and_everything_else_none(tmp_path):
    path = write(tmp_path, {"tp": "2.0", "isl": "OpenOrca", "ttft_ms": "81.5", "concurrency": "max", "n_gpus": "16"})
    (row,) = read_published(path)
    assert (row.line, row.tensor, row.chips, row.ttft_s) == (2, 2, 16, 0.0815)
    assert (row.prompt_tokens, row.concurrency, row.tpot_s, row.output_tokens_per_s) == (None,) * 4


def test_a_derived_throughput_is_no_measurement(tmp_path):
    path = write(tmp_path, {"notes": "tok/s derived = conc*osl/(ttft+tpot*(osl-1))"}, {"notes": "VALID"})
    assert [row.derived_throughput for row in read_published(path)] == [True, False]


def test_a_missing_column_is_named(tmp_path):
    path = write(tmp_path, columns=[column for column in COLUMNS if column != "tpot_ms"])
    with pytest.raises(TraceError, match="no column tpot_ms"):
        read_published(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"nothing\.csv"):
        read_published(tmp_path / "nothing.csv")
