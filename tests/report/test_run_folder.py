import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from nanoserve.report.run_folder import RunFolder, environment, git_state, run_id
from nanoserve.specs.errors import CapacityError, ConfigError

FRAME = pl.DataFrame({"request": [0, 1], "finish_s": [1.0, None]})
ENVIRONMENT = {"device_kind": "cpu", "seeds": {"trace": 1}, "trace_hash": "t", "weights_hash": None}


def _write_all(folder: RunFolder) -> None:
    folder.write_config("# mine\n", "A.b = 1\n")
    folder.write_environment(environment(**ENVIRONMENT))
    folder.write_records(FRAME, FRAME)
    folder.write_events(['{"t_s":0}\n', '{"t_s":1}\n'])
    folder.write_summary({"issued": 2})
    folder.write_report("<html></html>", "# report\n")


def test_a_finished_folder_holds_every_file_and_no_scraps(tmp_path):
    folder = RunFolder(tmp_path, "config", "0123456789ab")
    _write_all(folder)
    assert not (folder.path / "DONE").exists()
    folder.finish()
    names = {path.name for path in folder.path.iterdir()}
    assert names == {
        "config.gin", "operative.gin", "env.json", "requests.parquet", "steps.parquet", "events.jsonl", "summary.json",
        "report.html", "report.md", "DONE",
    }  # fmt: skip
    assert set((folder.path / "DONE").read_text().split()) == names - {"DONE"}
    assert pl.read_parquet(folder.path / "requests.parquet").equals(FRAME)
    assert (folder.path / "events.jsonl").read_text().count("\n") == 2
    assert json.loads((folder.path / "summary.json").read_text()) == {"issued": 2}


def test_running_again_takes_done_away_until_it_is_done_again(tmp_path):
    first = RunFolder(tmp_path, "config", "id")
    _write_all(first)
    first.finish()
    again = RunFolder(tmp_path, "config", "id")
    assert again.path == first.path
    assert not (again.path / "DONE").exists()
    assert (again.path / "summary.json").exists()


def test_a_full_disk_is_said_and_leaves_what_was_written(tmp_path):
    folder = RunFolder(tmp_path, "config", "id")
    _write_all(folder)
    (folder.path / ".summary.json.partial").symlink_to("/dev/full")  # the kernel's own full disk
    with pytest.raises(CapacityError, match=r"cannot write .*summary\.json: No space left on device"):
        folder.write_summary({"issued": 3})
    assert json.loads((folder.path / "summary.json").read_text()) == {"issued": 2}
    assert not any(path.name.endswith(".partial") for path in folder.path.iterdir())
    folder.write_summary({"issued": 3})
    assert json.loads((folder.path / "summary.json").read_text()) == {"issued": 3}


def test_a_file_in_the_way_of_the_folder_is_a_capacity_error(tmp_path):
    (tmp_path / "config").write_text("")
    with pytest.raises(CapacityError, match=r"cannot write .*config/id"):
        RunFolder(tmp_path, "config", "id")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "..", "a b"])
def test_a_name_that_leaves_the_folder_of_runs_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a folder"):
        RunFolder(tmp_path, name, "id")


def test_the_id_depends_on_every_part_and_on_where_each_ends():
    ids = {
        run_id(*parts)
        for parts in [("a", "b", "c"), ("ab", "", "c"), ("a", "b", None), ("a", "bc", ""), ("x", "b", "c")]
    }
    assert len(ids) == 5
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in ids)
    assert run_id("a", "b", "c") == run_id("a", "b", "c")


def test_the_environment_imports_nothing_heavy():
    code = (
        "import sys; from nanoserve.report.run_folder import environment; "
        f"print(environment(**{ENVIRONMENT!r})['packages']['jax']); "
        "print(sorted({'jax', 'polars', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    ).stdout.split("\n")
    assert lines[0][0].isdigit()
    assert lines[1] == "[]"


def test_a_folder_without_git_has_no_commit(tmp_path):
    assert git_state(tmp_path / "nowhere") == (None, None)
    assert environment(**ENVIRONMENT, repository=tmp_path / "nowhere")["commit"] is None


def test_a_changed_checkout_is_called_dirty(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit, dirty = git_state(tmp_path)
    assert commit is not None and len(commit) == 40 and dirty is False
    (tmp_path / "new").write_text("")
    assert git_state(tmp_path) == (commit, True)
