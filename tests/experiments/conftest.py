"""The command, called in this process: exit code, what it printed, and the folder that it wrote."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.run import main

SIMULATED = ("--config=llama8b_h100", "--executor=roofline", "--set=TraceSource.requests=20")
REAL = ("--config=tiny_cpu", "--executor=jax")
FILES = {
    "config.gin", "operative.gin", "env.json", "requests.parquet", "steps.parquet", "events.jsonl", "summary.json",
    "report.html", "report.md",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str
    runs: Path

    @property
    def folder(self) -> Path:
        """The one run folder."""
        (folder,) = self.runs.glob("*/*")
        return folder

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())


Command = Callable[..., Ended]


@pytest.fixture
def command(capsys, tmp_path) -> Command:
    """Calls `main` with arguments and a fresh `--out`, or the one in `runs`."""

    def call(*arguments: str, runs: Path | None = None) -> Ended:
        folder = runs or tmp_path / "runs"
        capsys.readouterr()
        code = main(["run.py", f"--out={folder}", *arguments])
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err, folder)

    return call


def refusal(ended: Ended) -> str:
    """The message of a refused command, once it is known to be one message, and no run was begun."""
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended.err
    assert "Traceback" not in ended.err
    assert not ended.runs.exists()
    return ended.err


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """Leaves the drawing, most of a short run's time, to the tests of the shipped configs and of the report."""
    monkeypatch.setattr("nanoserve.report.html.render_html", lambda data: "<html></html>")
