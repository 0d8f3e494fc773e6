"""Runs that do not come to their end: nothing already computed is lost, and nothing says DONE."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.report.progress import Progress
from nanoserve.report.run_folder import RunFolder
from tests.experiments.conftest import FILES, REAL, SIMULATED, Command, refusal

pytestmark = pytest.mark.usefixtures("no_plots")
REPOSITORY = Path(__file__).parents[2]
LONG = (
    "--config=llama8b_h100",
    "--executor=roofline",
    "--set=TraceSource.requests=300000",
    "--set=Engine.max_horizon_steps=1",
)


def _signal_at(monkeypatch, number: signal.Signals, update: int) -> None:
    """Sends a signal to this process when progress is told of something for the `update`-th time."""
    calls = iter(range(1, 1 << 30))

    def told(self, done, **fields):
        if next(calls) == update:
            signal.raise_signal(number)

    monkeypatch.setattr(Progress, "due", lambda self: True)
    monkeypatch.setattr(Progress, "update", told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_keeps_the_records_so_far_and_a_partial_summary(command: Command, monkeypatch, number):
    before = signal.getsignal(number)
    _signal_at(monkeypatch, number, update=40)
    ended = command(*SIMULATED)
    assert ended.code == 2 and ended.files == FILES
    requests = pl.read_parquet(ended.folder / "requests.parquet")
    steps = pl.read_parquet(ended.folder / "steps.parquet")
    summary = ended.summary
    assert len(steps) == 40  # the plan in which the signal came is the last
    assert summary["complete"] is False
    assert summary["issued"] == len(requests) == sum(summary["finish_reasons"].values())
    assert summary["finish_reasons"]["aborted"] > 0 and summary["completed"] > 0
    assert set(requests["finish_reason"]) == {"length", "aborted"}
    completed = summary["completed"]
    assert f"error: stopped by {number.name} after {completed} of 20 requests; the records so far are in" in ended.err
    assert "Traceback" not in ended.err
    assert signal.getsignal(number) is before


def test_a_signal_while_programs_compile_leaves_an_empty_partial_run(command: Command, monkeypatch):
    _signal_at(monkeypatch, signal.SIGINT, update=1)
    ended = command(*REAL, "--set=Engine.max_seqs=1", "--set=Engine.prefill_chunk_tokens=8")
    assert ended.code == 2 and ended.files == FILES | {"tape.npy"}
    assert "stopped by SIGINT after 0 of 24 requests" in ended.err and "Traceback" not in ended.err
    assert ended.summary["issued"] == 0 and ended.summary["complete"] is False
    assert pl.read_parquet(ended.folder / "steps.parquet").is_empty()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_before_the_first_step_says_that_nothing_is_lost(command: Command, monkeypatch, number):
    monkeypatch.setattr("nanoserve.replay.open_trace", lambda *arguments: signal.raise_signal(number))
    assert f"stopped by {number.name} before the first step; nothing was computed" in refusal(command(*SIMULATED))


def test_a_signal_while_a_complete_run_is_written_does_not_harm_it(command: Command, monkeypatch):
    def draw(data) -> str:
        signal.raise_signal(signal.SIGINT)
        return "<html></html>"

    monkeypatch.setattr("nanoserve.report.html.render_html", draw)
    ended = command(*SIMULATED)
    assert ended.code == 0 and ended.files == FILES | {"DONE"}
    assert ended.summary["complete"] is True


def test_a_partial_run_over_a_complete_one_takes_done_away(command: Command, monkeypatch):
    assert "DONE" in command(*SIMULATED).files
    _signal_at(monkeypatch, signal.SIGTERM, update=1)
    assert "DONE" not in command(*SIMULATED).files


def _fail_after(monkeypatch, plans: int, error: Exception) -> None:
    submit, numbers = RooflineExecutor.submit, iter(range(1 << 30))

    def failing(self, plan):
        if next(numbers) == plans:
            raise error
        return submit(self, plan)

    monkeypatch.setattr(RooflineExecutor, "submit", failing)


def test_a_failure_of_our_own_is_raised_as_it_is_after_the_records_are_safe(command: Command, monkeypatch, tmp_path):
    _fail_after(monkeypatch, 40, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError, match="ours"):
        command(*SIMULATED)
    (folder,) = tmp_path.glob("runs/*/*")
    assert {path.name for path in folder.iterdir()} == FILES - {"summary.json", "report.html", "report.md"}
    assert len(pl.read_parquet(folder / "steps.parquet")) == 40
    assert not pl.read_parquet(folder / "requests.parquet").is_empty()


def test_a_device_that_runs_out_of_memory_in_the_middle_is_one_message_and_keeps_the_records(
    command: Command, monkeypatch
):
    from jax.errors import JaxRuntimeError

    _fail_after(monkeypatch, 40, JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."))
    ended = command(*SIMULATED)
    assert ended.code == 2 and "DONE" not in ended.files
    said, message = ended.err.splitlines()
    assert said == f"the records so far are in {ended.folder}, without DONE"
    assert message.startswith("error: the device has not enough memory: Out of memory allocating 8 bytes. Lower ")


def _started(tmp_path: Path) -> subprocess.Popen:
    """A long simulated run in a process of its own, once its engine is about to start."""
    command = [sys.executable, "experiments/run.py", f"--out={tmp_path}", *LONG]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline().startswith("llama8b_h100: simulated")
    return process


def test_sigterm_from_outside_ends_a_process_with_exit_code_2_and_its_records(tmp_path):
    process = _started(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(r"^error: stopped by SIGTERM after \d+ of 300,000 requests", err, re.MULTILINE)
    assert "Traceback" not in err
    (folder,) = tmp_path.glob("*/*")
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_second_signal_ends_a_process_at_once(tmp_path):
    process = _started(tmp_path)
    assert process.stderr
    process.send_signal(signal.SIGINT)
    while "once more to end at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and "Traceback" not in err
    assert not list(tmp_path.glob("*/*/DONE"))


def test_a_folder_that_cannot_be_made_is_said_before_anything_runs(command: Command, tmp_path):
    (tmp_path / "file").write_text("")
    ended = command(*SIMULATED, runs=tmp_path / "file" / "runs")
    assert f"cannot write {tmp_path}/file/runs/llama8b_h100/" in refusal(ended)
    assert not ended.out


def _fill_disk(monkeypatch, root: Path, name: str) -> None:
    """Makes the disk under `root` full for one file: it is written to the kernel's own full disk."""
    write_config = RunFolder.write_config

    def planting(self, *texts):
        if self.path.is_relative_to(root):
            (self.path / f".{name}.partial").symlink_to("/dev/full")
        write_config(self, *texts)

    monkeypatch.setattr(RunFolder, "write_config", planting)


@pytest.mark.parametrize("name", ["requests.parquet", "summary.json", "DONE"])
def test_a_run_that_meets_a_full_disk_is_kept_whole_elsewhere(command: Command, tmp_path, monkeypatch, name):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    _fill_disk(monkeypatch, tmp_path / "runs", name)
    ended = command(*SIMULATED)
    assert ended.code == 2 and name not in ended.files and "DONE" not in ended.files
    assert f"cannot write {ended.folder / name}: No space left on device" in ended.err and ended.err.count("\n") == 1
    (kept,) = (tmp_path / "elsewhere").glob("nanoserve-*/llama8b_h100/*")
    assert f"The whole run is kept in {kept}" in ended.err
    assert {path.name for path in kept.iterdir()} == FILES | {"DONE"}
    assert json.loads((kept / "summary.json").read_text())["completed"] == 20


def test_a_full_disk_with_no_other_place_says_both_and_keeps_what_was_written(command: Command, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    _fill_disk(monkeypatch, tmp_path / "runs", "summary.json")
    ended = command(*SIMULATED)
    assert (
        ended.code == 2 and "No space left on device" in ended.err and "Nor can the run be kept elsewhere" in ended.err
    )
    assert {"requests.parquet", "steps.parquet", "events.jsonl"} <= ended.files


def test_output_that_cannot_be_printed_is_one_message():
    command = [sys.executable, "experiments/run.py", "--config=tiny_cpu", "--print_config"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: cannot print to standard output: No space left on device")
    assert ended.stderr.count("\n") == 1
