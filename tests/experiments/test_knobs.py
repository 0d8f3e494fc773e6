"""The page of the scheduler's knobs: every row runs, and what it says of the fields is what the fields are."""

import dataclasses
import typing

import pytest

from experiments import knobs
from nanoserve.engine.config import EngineConfig

needs_trace = pytest.mark.skipif(not knobs.TRACE.exists(), reason=f"{knobs.TRACE.name} is not in ../shared/traces")
ROWS = [(section, turned) for section in knobs.SECTIONS for turned in section.rows]


@needs_trace
def test_every_row_serves_the_same_requests():
    counts = set()
    for section, turned in ROWS:
        fields = {name: value for name, value in {**section.shared, **turned}.items() if name != "queue_limit"}
        outcome = knobs.replay(str(knobs.TRACE), 60, section.time_scale, fields, section.limited)
        counts.add((outcome.summary.completed, outcome.summary.output_tokens))
    assert len(counts) == 1


@needs_trace
def test_the_command_writes_a_table_a_section(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(knobs, "SECTIONS", knobs.SECTIONS[1:3])
    monkeypatch.setattr(knobs, "BATCHINGS", ({"batching": "mixed"}, {"batching": "static", "max_seqs": 16}))
    page = tmp_path / "page.md"
    assert knobs.main(["knobs.py", "--requests=60", f"--out={page}"]) == 0
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## How to read the tables",
        "## Near saturation, 8,000 pages",
        "## The same without limits on answers, 8,000 pages",
        "## Batching at an equal 95th percentile",
    ]
    assert text.startswith(knobs.introduction(60))
    assert "| `allocator = 'contiguous'` |" in text


def test_the_committed_page_has_the_rows_of_the_command():
    text = knobs.PAGE.read_text()
    assert text.startswith(knobs.introduction(8000))
    for section, turned in ROWS:
        part = text.split(f"## {section.title}\n")[1].split("\n## ")[0]
        assert f"| {knobs.name_of(turned)} |" in part


def test_the_fields_exist_with_these_defaults_and_values():
    fields = {field.name: field for field in dataclasses.fields(EngineConfig)}
    hints = typing.get_type_hints(EngineConfig)
    for name, values, _ in knobs.FIELDS:
        default = fields[name].default
        assert values.replace("`", "").split(", ")[0] == (
            f"{default:g}" if isinstance(default, float) else f"{default}"
        )
        if typing.get_origin(hints[name]) is typing.Literal:
            assert values.replace("`", "").split(", ") == list(typing.get_args(hints[name]))


def test_a_trace_that_is_not_there_is_one_line(capsys):
    assert knobs.main(["knobs.py", "--trace=/no/such.csv"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
