"""Runs that were killed or stopped go on from their last snapshot, and end as if nothing had happened."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.bench.kill import RECORDS, killed_runs
from experiments.run import main
from experiments.run_snapshots import FOLDER, Kept
from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.report.progress import Progress
from tests.experiments.conftest import FILES, REAL, SIMULATED, Command, Ended, refusal

pytestmark = pytest.mark.usefixtures("no_plots")

KEPT = (*SIMULATED, "--set=TraceSource.requests=60", "--set=Snapshots.interval_s=2.0")
FEW_PROGRAMS = ("--set=Engine.max_seqs=1", "--set=Engine.prefill_chunk_tokens=8", "--set=Engine.max_horizon_steps=1")


@pytest.fixture(autouse=True)
def one_commit(monkeypatch) -> None:
    """Whatever is committed while a test runs, its runs are of one commit."""
    monkeypatch.setattr("nanoserve.report.run_folder.git_state", lambda *repository: ("c0ffee", False))


def fail_at(monkeypatch, plan: int) -> None:
    """Ends a simulated run at one of its plans; no snapshot is taken on that way out."""
    submit = RooflineExecutor.submit
    calls = iter(range(1, 1 << 30))

    def submitted(self, planned):
        if next(calls) == plan:
            raise MemoryError
        return submit(self, planned)

    monkeypatch.setattr(RooflineExecutor, "submit", submitted)


def died(command: Command, monkeypatch, plan: int, *arguments: str, runs: Path) -> Path:
    """The folder of a run that died at a plan."""
    with monkeypatch.context() as patch:
        fail_at(patch, plan)
        with pytest.raises(MemoryError):
            command(*arguments, runs=runs)
    (folder,) = runs.glob("*/*")
    return folder


@pytest.fixture
def resume(capsys) -> Callable[..., Ended]:
    """Calls the command with `--resume=` a folder, and further flags."""

    def call(folder: Path, *arguments: str) -> Ended:
        capsys.readouterr()
        code = main(["run.py", f"--resume={folder}", *arguments])
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err, folder.parents[1])

    return call


def same_records(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in RECORDS)


@pytest.mark.parametrize("plan", [60, 101, 150])
def test_a_resumed_run_leaves_what_an_uninterrupted_one_leaves(command: Command, monkeypatch, tmp_path, plan: int):
    whole = command(*KEPT, runs=tmp_path / "whole")
    folder = died(command, monkeypatch, plan, *KEPT, runs=tmp_path / "died")
    assert len(list((folder / FOLDER).iterdir())) == 1
    ended = command(*KEPT, "--resume", runs=tmp_path / "died")
    assert ended.code == 0 and "resumed from" in ended.out
    assert ended.files == FILES | {"DONE"} == whole.files  # the snapshots are gone
    assert same_records(whole.folder, ended.folder)
    assert ended.summary | {"elapsed_s": 0} == whole.summary | {"elapsed_s": 0}


def test_snapshots_do_not_change_a_run(command: Command, tmp_path):
    kept = command(*KEPT, "--set=Snapshots.mtbf_s=3600", runs=tmp_path / "kept")
    alone = command(*KEPT, "--set=Snapshots.interval_s=None", runs=tmp_path / "alone")
    assert same_records(kept.folder, alone.folder)
    assert "snapshots of" in kept.out and "MB/s" in kept.out and "with a failure every 3,600 s" in kept.out
    assert "snapshots of" not in alone.out


def test_a_run_that_a_signal_stopped_goes_on_from_where_it_was(command: Command, monkeypatch, tmp_path):
    whole = command(*KEPT, runs=tmp_path / "whole")
    calls = iter(range(1, 1 << 30))
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "due", lambda self: True)
        patch.setattr(
            Progress, "update", lambda self, done, **f: next(calls) == 90 and signal.raise_signal(signal.SIGTERM)
        )
        stopped = command(*KEPT, runs=tmp_path / "stopped")
    assert stopped.code == 2 and f"to go on, run with --resume={stopped.folder}" in stopped.err
    assert [int(path.name) for path in (stopped.folder / FOLDER).iterdir()] == [90]
    ended = command(*KEPT, "--resume", runs=tmp_path / "stopped")
    assert "after 90 plans" in ended.out and same_records(whole.folder, ended.folder)


def test_a_run_can_be_resumed_by_its_folder(command: Command, resume, monkeypatch, tmp_path):
    whole = command(*KEPT, runs=tmp_path / "whole")
    folder = died(command, monkeypatch, 100, *KEPT, runs=tmp_path / "died")
    ended = resume(folder)
    assert ended.code == 0 and same_records(whole.folder, folder) and (folder / "DONE").exists()
    assert (folder / "config.gin").read_text() == (whole.folder / "config.gin").read_text()
    assert "a run goes on as it was started, so leave --set out" in resume(folder, "--set=Engine.max_seqs=3").err


@pytest.mark.parametrize("flag", ["Cluster.mesh={'data': 2}", "Disaggregation.decode_mesh={'tensor': 1}"])
def test_a_fleet_is_resumed_with_its_plans_under_way(command: Command, monkeypatch, tmp_path, flag: str):
    fleet = (*KEPT, f"--set={flag}")
    whole = command(*fleet, runs=tmp_path / "whole")
    died(command, monkeypatch, 100, *fleet, runs=tmp_path / "died")
    ended = command(*fleet, "--resume", runs=tmp_path / "died")
    assert ended.code == 0 and same_records(whole.folder, ended.folder)


def test_a_half_written_snapshot_is_skipped_with_a_line(command: Command, monkeypatch, tmp_path):
    keep = "--set=Snapshots.keep=3"
    folder = died(command, monkeypatch, 150, *KEPT, keep, runs=tmp_path / "died")
    *_, older, newest = sorted((folder / FOLDER).iterdir())
    (newest / "about" / "metadata").write_text("{")
    newest.with_name("000000000999.orbax-checkpoint-tmp").mkdir()
    ended = command(*KEPT, keep, "--resume", runs=tmp_path / "died")
    assert "skipped 000000000999.orbax-checkpoint-tmp: half-written when the run ended\n" in ended.out
    assert f"skipped {newest.name}: {newest}: is a damaged snapshot" in ended.out
    assert f"resumed from {older}" in ended.out and ended.code == 0


def test_a_run_that_starts_anew_does_not_go_on_from_an_old_snapshot(command: Command, monkeypatch, tmp_path):
    folder = died(command, monkeypatch, 150, *KEPT, runs=tmp_path / "died")
    (kept,) = (folder / FOLDER).iterdir()
    died(command, monkeypatch, 1, *KEPT, runs=tmp_path / "died")
    assert not kept.exists()


def test_resuming_without_a_snapshot_is_refused(command: Command):
    assert "there is no snapshot to go on from" in refusal(command(*KEPT, "--resume"))
    assert "the config takes no snapshots. Set Snapshots.interval_s" in refusal(command(*SIMULATED, "--resume"))


def test_resuming_a_complete_run_is_refused(command: Command):
    command(*KEPT)
    assert "is complete; there is nothing to go on with" in command(*KEPT, "--resume").err


def test_resuming_under_another_config_trace_or_commit_is_refused(command: Command, resume, monkeypatch, tmp_path):
    folder = died(command, monkeypatch, 150, *KEPT, runs=tmp_path / "died")
    operative = folder / "operative.gin"
    before = operative.read_text()
    operative.write_text(before.replace("Engine.max_seqs = 256", "Engine.max_seqs = 255"))
    said = resume(folder).err
    assert "is of another config: Engine.max_seqs = 256 there, Engine.max_seqs = 255 here. Resume with what" in said
    operative.write_text(before)
    with monkeypatch.context() as patch:
        patch.setattr("nanoserve.report.run_folder.git_state", lambda *repository: ("beef", False))
        assert "is of another commit: c0ffee there, beef here" in resume(folder).err
    with monkeypatch.context() as patch:
        patch.setattr("nanoserve.replay.trace_fingerprint", lambda trace: "other")
        assert "is of another trace: " in resume(folder).err


def test_a_snapshot_that_cannot_be_written_does_not_end_the_run(command: Command, monkeypatch):
    monkeypatch.setattr(Kept, "start", lambda self, folder, loaded: setattr(self, "_path", Path("/dev/null/snapshots")))
    ended = command(*KEPT)
    assert ended.code == 0 and "DONE" in ended.files
    assert "no snapshot after" in ended.err and "cannot write the snapshot /dev/null/snapshots" in ended.err


@pytest.mark.parametrize("setting", ["interval_s=0.0", "interval_s=-1.0", "mtbf_s=0.0", "keep=0"])
def test_a_setting_that_makes_no_sense_is_refused(command: Command, setting: str):
    assert f"Snapshots.{setting.split('=')[0]}" in refusal(command(*SIMULATED, f"--set=Snapshots.{setting}"))


def test_a_simulated_run_survives_sigkill(tmp_path):
    """Once, because processes take long to start: all twenty kills are made by `experiments/bench/kill`."""
    flags = [*KEPT, "--set=TraceSource.requests=2000", "--set=Snapshots.interval_s=20"]
    runs = killed_runs(flags, kills=1, within_s=0.1, seed=0, scratch=tmp_path)
    assert sum(len(run.kills) for run in runs) == 1
    assert [run.different for run in runs] == [[]] * len(runs)


def test_a_real_run_survives_sigkill(tmp_path):
    """Once, as above; a run that takes long enough to be killed in its middle."""
    flags = [*REAL, *FEW_PROGRAMS, "--set=TraceSource.requests=30", "--set=Snapshots.interval_s=0.5"]
    (run,) = killed_runs(flags, kills=1, within_s=0.2, seed=0, scratch=tmp_path)
    assert len(run.kills) == 1 and run.different == []
    outputs = [json.loads(line) for line in next(tmp_path.glob("whole/*/*/outputs.jsonl")).read_text().splitlines()]
    assert len({tuple(entry["output_ids"]) for entry in outputs}) > 20  # or equal tokens would mean nothing
