r"""Kills a run at random moments, resumes it each time, and compares what it leaves with an uninterrupted run.

    python experiments/bench/kill.py --config=llama8b_h100 --executor=roofline --kills=20 \
        --set TraceSource.requests=20000 --set Snapshots.interval_s=100
    python experiments/bench/kill.py --config=tiny_cpu --kills=20 --set TraceSource.requests=150 \
        --set Snapshots.interval_s=0.5 --set Engine.max_seqs=2 --set Engine.prefill_chunk_tokens=16

A process is killed (SIGKILL) a random time after its first new snapshot is there, which may be in the middle of the
next one. A run that is over before all kills are done is checked and started anew. What must be equal: of a simulated
run every byte of its records, of a real one every token. Exit code 1: something is not.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.run_snapshots import FOLDER
from nanoserve.specs.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDS = ("requests.parquet", "steps.parquet", "events.jsonl")
_POLL_S = 0.005


@dataclasses.dataclass(frozen=True)
class Killed:
    """What became of one run.

    Attributes:
      kills: (plans in the newest snapshot, seconds after it) of each time that it was killed.
      different: files, or requests' tokens, that are not those of the uninterrupted run.
    """

    kills: list[tuple[int, float]]
    different: list[str]


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("config", "tiny_cpu", "as for experiments/run.py", flag_values=own)
    flags.DEFINE_enum("executor", "auto", ["auto", "jax", "roofline"], "as for experiments/run.py", flag_values=own)
    flags.DEFINE_multi_string("set", [], "as for experiments/run.py", flag_values=own)
    flags.DEFINE_integer("kills", 20, "how often to kill", lower_bound=1, flag_values=own)
    flags.DEFINE_float("within_s", 1.0, "longest time from a snapshot to the kill", lower_bound=0, flag_values=own)
    flags.DEFINE_integer("seed", 0, "of the moments", flag_values=own)
    flags.DEFINE_string("out", None, "file for the result, JSON", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    run = [f"--config={asked.config}", f"--executor={asked.executor}", *(f"--set={each}" for each in asked.set)]
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        runs = killed_runs(run, asked.kills, asked.within_s, asked.seed, Path(scratch))
        seconds = time.perf_counter() - begin
    equal = not any(each.different for each in runs)
    result = {
        "command": run,
        "seed": asked.seed,
        "kills": sum(len(each.kills) for each in runs),
        "equal": equal,
        "seconds": round(seconds, 1),
        "runs": [dataclasses.asdict(each) for each in runs],
    }
    print(json.dumps(result, indent=1))
    if asked.out:
        command.write_json("--out", Path(asked.out), result)
    return 0 if equal else command.EXIT_FAILED


def killed_runs(run: Sequence[str], kills: int, within_s: float, seed: int, scratch: Path) -> list[Killed]:
    """Kills as many times as asked, in as many runs as that takes.

    Args:
      run: flags of `experiments/run.py`, with snapshots. kills: in all.
      within_s: from a new snapshot to the kill, at most. seed: of these times. scratch: an empty folder.

    Raises:
      ConfigError: a run that does not come to its end, with what it said.
    """
    rng, runs, left = random.Random(seed), [], kills
    whole = _to_the_end(run, scratch / "whole")
    while left:
        out = scratch / f"killed_{len(runs)}"
        moments = _kill(run, out, left, within_s, rng)
        ended = _to_the_end([*run, "--resume"] if moments and not _done(out) else run, out)
        runs.append(Killed(moments, _differences(whole, ended)))
        left -= len(moments)
    return runs


def _kill(run: Sequence[str], out: Path, kills: int, within_s: float, rng: random.Random) -> list[tuple[int, float]]:
    """Kills a run up to so many times; stops early where it was over sooner."""
    moments = []
    while len(moments) < kills:
        process = _started([*run, "--resume"] if moments else run, out)
        wait_s = rng.uniform(0, within_s)
        if _wait_for_snapshot(process, out):
            time.sleep(wait_s)
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL or _done(out):
            break
        moments.append((max(_snapshots(out), default=0), round(wait_s, 3)))
    return moments


def _wait_for_snapshot(process: subprocess.Popen, out: Path) -> bool:
    """Waits until there is a snapshot that was not there; False if the process is over before."""
    before = _snapshots(out)
    while process.poll() is None:
        if _snapshots(out) - before:
            return True
        time.sleep(_POLL_S)
    return False


def _to_the_end(run: Sequence[str], out: Path) -> Path:
    """Runs to the end; returns the run's folder."""
    process = _started(run, out)
    said, complaint = process.communicate()
    if process.returncode:
        raise ConfigError(f"the run {' '.join(run)} ended with {process.returncode}: {complaint}{said}")
    (folder,) = out.glob("*/*")
    return folder


def _started(run: Sequence[str], out: Path) -> subprocess.Popen:
    # Outside git's sight, so that a commit made meanwhile does not part a run from its snapshots; and programs are
    # compiled once for all processes, which would otherwise do little else.
    environment = os.environ | {
        "GIT_DIR": os.devnull,
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "experiments/run.py", f"--out={out}", *run],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _snapshots(out: Path) -> set[int]:
    return {int(path.name) for path in out.glob(f"*/*/{FOLDER}/*") if path.name.isdigit()}


def _done(out: Path) -> bool:
    return any(out.glob("*/*/DONE"))


def _differences(whole: Path, ended: Path) -> list[str]:
    if not (whole / "outputs.jsonl").exists():
        return [name for name in RECORDS if (whole / name).read_bytes() != (ended / name).read_bytes()]
    tokens, again = _tokens(whole), _tokens(ended)
    return [
        f"request {index}" for index in sorted(tokens.keys() | again.keys()) if tokens.get(index) != again.get(index)
    ]


def _tokens(folder: Path) -> dict[int, list[int]]:
    entries = (json.loads(line) for line in (folder / "outputs.jsonl").read_text().splitlines())
    return {entry["request"]: entry["output_ids"] for entry in entries}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
