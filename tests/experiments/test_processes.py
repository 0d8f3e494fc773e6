"""Two processes with a device each run one engine: the tokens of one process, and files of the first one only."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import run_processes
from experiments.command import parse
from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import Experiment, Snapshots
from nanoserve.specs.errors import ConfigError
from tests.experiments.conftest import Command

REPOSITORY = pathlib.Path(__file__).parents[2]
SMALL = [
    "--config=tiny_cpu",
    "--executor=jax",
    "--set=Engine.max_seqs=1",  # four programs to compile
    "--set=Engine.prefill_chunk_tokens=8",
    "--set=Engine.max_context_tokens=48",
    "--set=TraceSource.requests=5",
    "--set=TraceSource.max_prompt_tokens=20",
    "--set=TraceSource.max_output_tokens=12",
]


def start(folder: pathlib.Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "experiments/run.py", *SMALL, f"--out={folder}", *arguments]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | {"JAX_PLATFORMS": "cpu"}, **piped)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def tokens(folder: pathlib.Path) -> dict[int, list[int]]:
    (file,) = folder.glob("*/*/outputs.jsonl")
    assert (file.parent / "DONE").exists()
    return {line["request"]: line["output_ids"] for line in map(json.loads, file.read_text().splitlines())}


@pytest.mark.usefixtures("no_plots")
def test_two_processes_generate_the_tokens_of_one_and_the_first_writes_them(command: Command, tmp_path):
    places = [tmp_path / name for name in ("first", "second", "alone")]
    together = ["--set=Cluster.mesh={'tensor': 2}", f"--coordinator=localhost:{free_port()}", "--processes=2"]
    running = [start(place, *together, f"--process={index}") for index, place in enumerate(places[:2])]
    assert command(*SMALL, runs=places[2]).code == 0
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    assert not places[1].exists()
    assert tokens(places[0]) == tokens(places[2])
    assert len(tokens(places[2])) == 5


@pytest.mark.parametrize(
    ("executor", "experiment", "says"),
    [
        (None, Experiment(), "one is enough for a run that is simulated"),
        ("JAX", Experiment(snapshots=Snapshots(interval_s=1.0)), "no snapshot is taken"),
        ("JAX", Experiment(engine=EngineConfig(preemption="swap")), "no pages are swapped"),
    ],
)
def test_what_processes_cannot_share_is_refused(executor, experiment, says):
    choice = SimpleNamespace(line="simulated because it was asked for")
    replay: Any = SimpleNamespace(jax_executor=executor, experiment=experiment, choice=choice)
    with pytest.raises(ConfigError, match=says):
        run_processes.check(replay)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--processes=2"], "needs --coordinator=HOST:PORT"),
        (["--processes=2", "--coordinator=localhost:1", "--process=2"], "the last of 2 is 1"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused_before_anyone_waits(arguments, says):
    with pytest.raises(ConfigError, match=says):
        run_processes.group_of(parse(["run.py", *arguments], run_processes.define_flags))
