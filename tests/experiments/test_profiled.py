"""run.py --profile_steps: what it refuses, and what it leaves in the folder of a real run."""

import json

import polars as pl
import pytest

from experiments.run_profiled import plans_of
from nanoserve.specs.errors import ConfigError
from tests.experiments.conftest import FILES, REAL, SIMULATED, Command, refusal

SMALL = (  # four programs to compile
    "--set=TraceSource.requests=4",
    "--set=Engine.max_seqs=1",
    "--set=Engine.prefill_chunk_tokens=8",
    "--set=Engine.max_context_tokens=80",
)


def test_plans_are_first_to_end():
    assert plans_of("20:25") == range(20, 25)


@pytest.mark.parametrize("text", ["", "20", "20-25", "a:b", "-1:3", "20:", "1.5:3", "20:25:2"])
def test_what_is_no_range_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"is not FIRST:END.*Give 20:25"):
        plans_of(text)


@pytest.mark.parametrize("text", ["5:5", "7:3"])
def test_a_range_of_no_plan_is_refused(text):
    with pytest.raises(ConfigError, match="names no plan"):
        plans_of(text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*SIMULATED, "--profile_steps=2:3"), "records what a device does"),
        ((*SIMULATED, "--profile_steps=3:2"), "names no plan"),
        ((*REAL, "--profile_steps=2:3", "--compare_executors"), "Leave one of them out"),
        ((*REAL, "--profile_steps=2:3", "--set=Snapshots.interval_s=5"), "Leave Snapshots.interval_s out"),
        (("--replay=runs/a/b", "--profile_steps=2:3"), "so leave --profile_steps out"),
    ],
)
def test_what_cannot_be_profiled_is_refused_before_anything_runs(command: Command, arguments, says):
    assert says in refusal(command(*arguments))


@pytest.mark.usefixtures("no_plots")
def test_a_profiled_run_has_its_record_its_table_and_a_page(command: Command):
    ended = command(*REAL, *SMALL, "--profile_steps=3:6")
    assert ended.code == 0, ended.err
    assert ended.files == FILES | {"DONE", "outputs.jsonl", "tape.npy", "profile"}
    found = json.loads((ended.folder / "profile" / "profile.json").read_text())
    kinds = {kind["kind"]: kind for kind in found["kinds"]}
    files = {path.name for path in (ended.folder / "profile").iterdir()}
    assert files == {"profile.json", "trace.xplane.pb", "trace.json.gz", *(f"{kind}.png" for kind in kinds)}
    assert {f"profile/{name}" for name in files} <= set((ended.folder / "DONE").read_text().splitlines())
    steps = pl.read_parquet(ended.folder / "steps.parquet")[3:6]
    for name, kind in kinds.items():
        mine = steps.filter(pl.col("kind") == name)
        assert (kind["plans"], kind["steps"]) == (len(mine), mine["steps"].sum())
        whole_s = sum(line["measured_s"] for line in kind["lines"])
        assert whole_s == pytest.approx(mine["duration_s"].sum() / kind["steps"], rel=1e-9)
        assert kind["attributed"] > 0.8
        assert all(line["measured_s"] >= 0 for line in kind["lines"])
    assert sum(kind["plans"] for kind in kinds.values()) == 3
    assert "queries, keys, values" in ended.out and "Plans 3 to 5 of the run on cpu" in ended.out
    assert "Where a step's time went" in (ended.folder / "report.md").read_text()


@pytest.mark.usefixtures("no_plots")
def test_plans_that_a_run_does_not_have_are_said_and_the_run_is_kept(command: Command, monkeypatch):
    ended = command(*REAL, *SMALL, "--profile_steps=5000:5001")
    assert ended.code == 0 and "DONE" in ended.files and "profile" not in ended.files
    assert "--profile_steps=5000:5001: nothing is profiled, the run had" in ended.out
