"""A recorded run is made again, equal to the bit; with a fork it is equal up to a step and another afterwards."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments.run import main
from nanoserve.engine.tape import ROW
from nanoserve.report.progress import Progress
from tests.experiments.conftest import FILES, REAL, SIMULATED, Command, Ended, refusal

pytestmark = pytest.mark.usefixtures("no_plots")

BUSY = (*SIMULATED, "--set=TraceSource.requests=120", "--set=TraceSource.rate_rps=60.0")
FEW_PROGRAMS = ("--set=Engine.max_seqs=1", "--set=Engine.prefill_chunk_tokens=8", "--set=Engine.max_horizon_steps=1")

Again = Callable[..., Ended]


@pytest.fixture
def again(capsys, tmp_path) -> Again:
    """Calls the command with `--replay=` a folder, and further flags; forks go to a folder of their own."""

    def call(folder: Path, *arguments: str) -> Ended:
        forks = tmp_path / "forks"
        capsys.readouterr()
        code = main(["run.py", f"--replay={folder}", f"--out={forks}", *arguments])
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err, forks)

    return call


def found_in(folder: Path) -> dict:
    return json.loads((folder / "replay.json").read_text())


@pytest.mark.parametrize("flags", [[], ["--set=Cluster.mesh={'data': 2}"]], ids=["engine", "fleet"])
def test_a_simulated_run_is_equal_when_it_is_made_again(command: Command, again: Again, flags: list[str]):
    ended = command(*BUSY, *flags)
    repeated = again(ended.folder)
    assert repeated.code == 0 and "equal: " in repeated.out and "120 requests, every event\n" in repeated.out
    assert found_in(ended.folder)["equal"] is True
    assert ended.files == FILES | {"DONE", "replay.json"}


def tokens_of(file: Path) -> dict[int, list[int]]:
    entries = (json.loads(line) for line in file.read_text().splitlines())
    return {entry["request"]: entry["output_ids"] for entry in entries}


def altered(table: Path, column: str, row: int, value) -> None:
    frame = pl.read_parquet(table)
    values = frame[column].to_list()
    values[row] = value
    frame.with_columns(pl.Series(column, values, frame.schema[column])).write_parquet(table)


@pytest.mark.parametrize(
    ("table", "column", "row", "said"),
    [
        ("steps.parquet", "decode_seqs", 7, "decode_seqs: recorded 999, repeated"),
        ("requests.parquet", "preemptions", 3, "request 3, preemptions: recorded 999, repeated 0 (1 of the requests"),
    ],
)
def test_the_first_difference_is_named(command: Command, again: Again, table, column, row, said):
    folder = command(*BUSY).folder
    altered(folder / table, column, row, 999)
    repeated = again(folder)
    assert repeated.code == 1 and repeated.out.splitlines()[-1].startswith("different: ") and said in repeated.out
    found = found_in(folder)
    assert found["equal"] is False and found["first_difference"]["recorded"] == 999


def test_a_run_whose_engine_behaves_otherwise_now_is_different(command: Command, again: Again, monkeypatch):
    folder = command(*BUSY).folder
    monkeypatch.setattr("nanoserve.engine.scheduler.most_chunk_tokens", lambda config: 100)
    repeated = again(folder)
    assert repeated.code == 1 and "different: step" in repeated.out
    assert found_in(folder)["first_difference"]["table"] == "plans"


def test_a_run_that_was_cut_short_is_not_made_again(command: Command, again: Again):
    folder = command(*BUSY).folder
    (folder / "DONE").unlink()
    assert "the run was cut short (no DONE)" in refusal(again(folder))


def test_what_is_no_run_is_refused(again: Again, tmp_path):
    assert "is not the folder of a run" in refusal(again(tmp_path))


def test_another_trace_is_refused(command: Command, again: Again, monkeypatch):
    folder = command(*BUSY).folder
    monkeypatch.setattr("nanoserve.replay.trace_fingerprint", lambda trace: "other")
    assert "is not that of the recorded run any more" in refusal(again(folder))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config=tiny_cpu"], "so leave --config out"),
        (["--set=Engine.max_seqs=3"], "With --fork_at=STEP it changes there"),
        (["--resume"], "so leave --resume out"),
        (["--fork_at=20"], "nothing changes there"),
        (["--fork_at=20", "--set=Engine.max_seqs=3"], "Engine.max_seqs cannot change while requests are in the engine"),
        (["--fork_at=20", "--set=Cluster.mesh={'tensor': 2}"], "not the cluster"),
        (["--fork_at=20", "--set=Engine.policy='fsfc'"], "Did you mean 'fcfs'?"),
        (["--fork_at=100000", "--set=Engine.policy='priority'"], "the run has only"),
    ],
)
def test_flags_that_make_no_sense_are_refused(command: Command, again: Again, flags, said):
    folder = command(*BUSY).folder
    ended = again(folder, *flags)
    assert ended.code == 2 and said in ended.err and not ended.runs.exists()


def test_a_fork_needs_a_run(command: Command):
    assert "--fork_at needs --replay" in refusal(command(*BUSY, "--fork_at=3"))


def test_a_fork_is_the_run_up_to_its_step_and_another_run_afterwards(command: Command, again: Again):
    folder = command(*BUSY).folder
    forked = again(folder, "--fork_at=40", "--set=Engine.policy='shortest_first'", "--set=Engine.queue_limit=30")
    assert forked.code == 0 and forked.files == FILES | {"DONE", "fork.json"}
    origin = json.loads((forked.folder / "fork.json").read_text())
    assert origin["of"] == str(folder) and origin["step"] >= 40
    assert origin["changed"] == {"policy": ["fcfs", "shortest_first"], "queue_limit": [None, 30]}
    steps, other = (pl.read_parquet(each / "steps.parquet") for each in (folder, forked.folder))
    before = pl.col("step") < origin["step"]
    assert steps.filter(before).equals(other.filter(before)) and len(steps.filter(before)) > 10
    assert not steps.equals(other)
    assert "Engine.policy 'fcfs' -> 'shortest_first'" in forked.out and "TTFT p95" in forked.out
    assert "Engine.policy = 'shortest_first'" in (forked.folder / "operative.gin").read_text()
    assert "is a fork" in again(forked.folder).err


def test_a_fork_of_a_run_that_does_not_repeat_is_refused(command: Command, again: Again):
    folder = command(*BUSY).folder
    altered(folder / "steps.parquet", "prefill_tokens", 5, 999)
    ended = again(folder, "--fork_at=40", "--set=Engine.policy='shortest_first'")
    assert "the run does not repeat itself up to step" in refusal(ended)


def test_a_real_run_is_equal_when_it_is_made_again_and_can_be_forked(command: Command, again: Again):
    """Recorded once, then repeated while the machine is as slow as it likes: the same plans, the same tokens."""
    ended = command(*REAL, *FEW_PROGRAMS, "--set=TraceSource.requests=12")
    repeated = again(ended.folder)
    assert repeated.code == 0 and ", every token\n" in repeated.out

    forked = again(ended.folder, "--fork_at=60", "--set=Engine.policy='shortest_first'")
    assert forked.code == 0, forked.err
    tokens, other = (tokens_of(each / "outputs.jsonl") for each in (ended.folder, forked.folder))
    assert tokens == other and len(tokens) == 12  # tokens do not depend on the schedule
    starts, later = (pl.read_parquet(each / "steps.parquet")["start_s"] for each in (ended.folder, forked.folder))
    assert starts[:50].equals(later[:50]) and (later.diff().drop_nulls() > 0).all()

    (ended.folder / "tape.npy").unlink()
    assert "has no tape.npy" in again(ended.folder).err


def test_a_run_that_parts_from_its_tape_is_different(command: Command, again: Again):
    folder = command(*BUSY).folder
    np.save(folder / "tape.npy", np.zeros(3, ROW))  # times, where an estimate is due
    repeated = again(folder)
    assert repeated.code == 1 and "the engine asks for a" in repeated.out
    assert found_in(folder)["parted"] and found_in(folder)["first_difference"]["table"] == "plans"


def test_a_real_run_is_not_made_again_by_a_simulation(command: Command, again: Again):
    folder = command(*BUSY).folder
    (folder / "outputs.jsonl").write_text("")
    assert "Repeat it where it was made" in refusal(again(folder))


def test_a_repetition_can_be_stopped(command: Command, again: Again, monkeypatch):
    folder = command(*BUSY).folder
    monkeypatch.setattr(Progress, "due", lambda self: True)
    monkeypatch.setattr(Progress, "update", lambda self, done, **fields: signal.raise_signal(signal.SIGINT))
    assert "stopped by SIGINT; nothing was compared" in again(folder).err
    assert not (folder / "replay.json").exists()
