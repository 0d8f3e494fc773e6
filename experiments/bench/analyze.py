"""Measures how long `experiments/analyze.py` takes and how much memory: the whole command, as a user runs it.

    python experiments/bench/analyze.py --run=runs/lab_week_baseline/0123456789ab
    python experiments/bench/analyze.py --run=... --requests=10000000 --out=experiments/bench/results/analyze.json

Three logs: the sample of a run (one table of 12 columns), the same run's four logs, and the sample made as large as
--requests by repeating it. Every copy has ids of its own, sessions and users too, and its requests moved by up to half
an hour, so that nothing repeats but lengths; the file is sorted by time, as a service writes it. It is made in a
temporary folder and taken away.

Every row is a process of its own. Its wall time is from start to exit, imports, plots and pages included. Its memory is
the sum of what it and its helpers had at their peaks, as the kernel counts it, as if all had peaked at once.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.specs.errors import ConfigError, TraceError

REPOSITORY = Path(__file__).resolve().parents[2]
ANALYZE = REPOSITORY / "experiments" / "analyze.py"
SEED, MOVED_S = 0, 1800
LOOK_S = 0.1
_IDS = ("request_id", "user_id", "session_id")
_HEADER = f"{'log':<12}{'rows':>12}{'MB':>8}{'wall s':>9}{'cpu s':>9}{'peak MB':>10}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One run of the command.

    Attributes:
      log: which. rows: requests in it. file_bytes: of all files that were read.
      wall_s: from start to exit. cpu_s: of all its threads and helpers. peak_bytes: resident memory, see above.
    """

    log: str
    rows: int
    file_bytes: int
    wall_s: float
    cpu_s: float
    peak_bytes: int

    def line(self) -> str:
        """As a line of the table."""
        return (
            f"{self.log:<12}{self.rows:>12,}{self.file_bytes / 1e6:>8,.0f}{self.wall_s:>9.2f}{self.cpu_s:>9.2f}"
            f"{self.peak_bytes / 1e6:>10,.0f}"
        )


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("run", None, "folder of a run that kept its logs", flag_values=own)
    flags.DEFINE_integer("requests", 10_000_000, "size of the large log", lower_bound=1, flag_values=own)
    flags.DEFINE_string("out", None, "write the figures to this JSON file", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    logs = _logs_of(asked.run)
    load_average = os.getloadavg()[0]  # before our own work raises it
    print(_HEADER)
    rows = [
        measure("sample", [logs / "sample.parquet"]),
        measure("four logs", [logs / f"{name}.parquet" for name in ("api", "telemetry", "app", "errors")]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.parquet"
        _in_a_new_process(logs / "sample.parquet", asked.requests, large)
        rows.append(measure("large", [large]))
    if asked.out:
        from experiments.bench.host import machine

        figures = {
            "command": shlex.join(["python", *sys.argv]),
            "machine": machine(),
            "load_average_1_min": load_average,
            "seed": SEED,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        command.write_json("--out", Path(asked.out), figures)
    return 0


def _logs_of(run: str | None) -> Path:
    """The folder of a run's logs.

    Raises:
      ConfigError: no run is named, or it kept none.
    """
    if run is None:
        raise ConfigError("--run is missing: a run that kept its logs. Make one: make run CONFIG=lab_week_baseline")
    logs = Path(run) / "logs"
    if not (logs / "sample.parquet").exists():
        raise ConfigError(f"--run={run}: there is no logs/sample.parquet in it. Name a run of lab_week_baseline")
    return logs


def measure(log: str, files: Sequence[Path]) -> Row:
    """Runs the command on some files.

    Args:
      log: what to call them. files: that it reads, the one with the requests first.

    Raises:
      TraceError: the command did not succeed.
    """
    import polars as pl

    before_s = _children_cpu_s()
    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, ANALYZE, *files, f"--out={out}"], stdout=subprocess.DEVNULL)
        peaks: dict[int, int] = {}
        while process.poll() is None:
            peaks |= {pid: peak for pid in _family(process.pid) if (peak := _peak_bytes(pid))}
            time.sleep(LOOK_S)
        wall_s = time.perf_counter() - begun
    if process.returncode:
        raise TraceError(f"analyze.py ended with exit code {process.returncode} on {', '.join(map(str, files))}")
    row = Row(
        log=log,
        rows=pl.scan_parquet(files[0]).select(pl.len()).collect().item(),
        file_bytes=sum(file.stat().st_size for file in files),
        wall_s=wall_s,
        cpu_s=_children_cpu_s() - before_s,
        peak_bytes=sum(peaks.values()),
    )
    print(row.line(), flush=True)
    return row


def _children_cpu_s() -> float:
    """CPU time of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> list[int]:
    """A process and all that it started; those that have ended are left out."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _peak_bytes(pid: int) -> int:
    """Largest resident memory of a process so far; 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _in_a_new_process(sample: Path, requests: int, path: Path) -> None:
    """Makes the large log where its memory is given back."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        pool.submit(write_large, sample, requests, path).result()


def write_large(sample: Path, requests: int, path: Path) -> None:
    """Writes the sample, repeated until it has so many requests.

    Args:
      sample: twelve columns. requests: to write. path: of the file.
    """
    import numpy as np
    import polars as pl

    table = pl.read_parquet(sample)
    rng = np.random.default_rng(SEED)
    copies = []
    for copy in range(-(-requests // len(table))):
        moved_us = pl.Series(rng.integers(-MOVED_S * 10**6, MOVED_S * 10**6, len(table)))
        ids = [pl.format("{}-{}", name, pl.lit(copy)).alias(name) for name in _IDS]
        timestamp = pl.col("timestamp") + pl.duration(microseconds=pl.lit(moved_us))
        copies.append(table.with_columns(*ids, timestamp))
    pl.concat(copies).head(requests).sort("timestamp").write_parquet(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
