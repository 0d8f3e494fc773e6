"""`experiments/validate.py` on a table of three rows: what it prints and writes, and what it refuses."""

import json

import pytest

from experiments import validate, validation_page
from nanoserve.analysis.published.results import COLUMNS
from nanoserve.roofline import constants_files

SOURCE = "aiconfigurator-core 0.12.0 systems/silicon_sample.csv (silicon_sample.csv)"
ROW = {
    "source": SOURCE,
    "hardware": "H100-SXM-80GB",
    "n_gpus": "1",
    "model": "Llama-3.1-8B",
    "precision": "fp8",
    "engine": "vllm",
    "tp": "1",
    "isl": "128",
    "osl": "32",
    "concurrency": "2",
    "mode": "closed loop",
    "ttft_ms": "20.0",
    "tpot_ms": "5.0",
}


@pytest.fixture
def shared(tmp_path):
    facts = tmp_path / "shared" / "facts"
    facts.mkdir(parents=True)
    rows = (ROW, {**ROW, "engine": "vllm 0.12.0"}, {**ROW, "hardware": "abacus"})
    lines = [",".join(COLUMNS), *(",".join(row.get(column, "") for column in COLUMNS) for row in rows)]
    (facts / "published_throughput.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "shared"


def run(shared, *flags: str) -> int:
    return validate.main(["validate.py", f"--from={shared}", *flags])


def test_a_part_is_replayed_printed_and_written_where_out_says(shared, tmp_path, capsys):
    assert run(shared, "--only=aiconfigurator*", f"--out={tmp_path / 'out'}") == 0
    printed = capsys.readouterr().out
    assert "vllm_sync" in printed
    assert "hardware 'abacus': it is not known here" in printed
    rows = json.loads((tmp_path / "out" / "validation" / "rows.json").read_text())
    assert [row["engine"] for row in rows] == ["vllm", "vllm 0.12.0"]
    assert rows[0]["values"]["tpot"]["measured"] == 0.005
    for name in ("validation.md", "validation/scatter.png", "validation/errors.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000, name


def test_a_part_changes_neither_the_page_nor_the_errors_that_runs_print(shared):
    page = validate.REPOSITORY / "docs" / "validation.md"
    before = page.read_bytes(), constants_files.VALIDATION.read_bytes()
    assert run(shared, "--only=aiconfigurator/vllm/*") == 0
    assert (page.read_bytes(), constants_files.VALIDATION.read_bytes()) == before


def test_a_part_is_chosen_by_source_engine_and_model_in_any_case(shared, capsys):
    assert run(shared, "--only=AICONFIGURATOR/VLLM/Llama*") == 0
    printed = capsys.readouterr().out
    assert "vllm_sync" not in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=nothing*"], "--only=nothing*: matches no SOURCE/ENGINE/MODEL"),
        (["--onyl=x"], "onyl"),
        (["--only=a*", "--out=/dev/null/x"], "--out=/dev/null/x"),
    ],
)
def test_what_it_cannot_use_is_one_line_and_exit_code_2(shared, capsys, flags, message):
    assert run(shared, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_a_missing_table_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert run(tmp_path) == 2
    assert "published_throughput.csv" in capsys.readouterr().err.splitlines()[-1]


def test_a_table_of_the_page_is_markdown():
    assert validation_page.table([("a", "long"), ("value", "b")]) == [
        "| a     | long |",
        "|-------|------|",
        "| value | b    |",
    ]


def test_the_errors_that_runs_print_are_those_of_the_page():
    rows = json.loads((validate.REPOSITORY / "docs" / "validation" / "rows.json").read_text())
    held_out = [row for row in rows if not row["training"] and not row["caveat"]]
    for key, entry in json.loads(constants_files.VALIDATION.read_text()).items():
        chip, stack, _ = key.split("/")
        mine = [row for row in held_out if (row["chip"], row["constants"]) == (chip, stack)]
        assert entry["rows"] == len(mine), key
        for metric in ("tpot", "ttft", "throughput"):
            errors = [abs(row["values"][metric]["error"]) for row in mine if metric in row["values"]]
            if errors:
                assert entry[metric]["mean_abs"] == pytest.approx(sum(errors) / len(errors), abs=2e-4), (key, metric)
