"""A run's folder: `runs/<config>/<id>/`, and who writes what in it.

Invariants: every file appears whole or not at all (written beside its place, then renamed); `DONE` appears last, so a
folder with `DONE` is complete; a failed write leaves every earlier file as it was. A run whose folder exists already
(same configuration, trace and commit) writes over it, after taking `DONE` away.

Parquet and JSONL are the truth; the summary and the reports can be made again from them. Next: `metrics`.
"""

import hashlib
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoserve.specs.errors import CapacityError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

LOG_BLOCK_TOKENS = "nanoserve_block_tokens"  # key in the metadata of a service log's file
LOGS, PROFILE = "logs", "profile"
VERSIONED_PACKAGES = ("jax", "jaxlib", "numpy", "polars")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_REPOSITORY = Path(__file__).resolve().parents[2]


def run_id(operative_text: str, trace_fingerprint: str, commit: str | None) -> str:
    """Names a run by what determines it: 12 hexadecimal digits.

    Args:
      operative_text: the configuration with every value spelled out.
      trace_fingerprint: a hash of the trace's content.
      commit: of the code, or None outside a checkout.
    """
    parts = (operative_text, trace_fingerprint, commit or "")
    framed = "".join(f"{len(part)}:{part}" for part in parts)  # lengths, so that text cannot move between parts
    return hashlib.sha256(framed.encode()).hexdigest()[:12]


class RunFolder:
    """Writes the files of one run."""

    def __init__(self, root: Path | str, config_name: str, run_id: str):
        """Makes the folder, and takes `DONE` away if an identical run finished there before.

        Args:
          root: the folder of all runs.
          config_name: name of the configuration. run_id: see `run_id`.

        Raises:
          ConfigError: a name that is not one plain path component.
          CapacityError: the folder cannot be made.
        """
        for name in (config_name, run_id):
            if not _SAFE_NAME.fullmatch(name):
                raise ConfigError(f"'{name}' cannot name a folder of a run: use letters, digits, '.', '_', '+' and '-'")
        self.path = Path(root) / config_name / run_id
        _make(self.path)
        try:
            (self.path / "DONE").unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def write_config(self, as_written: str, operative: str) -> None:
        """`config.gin`, the user's own text, and `operative.gin`, every value spelled out."""
        self._write("config.gin", as_written.encode())
        self._write("operative.gin", operative.encode())

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """`env.json`: see `environment`."""
        self._write("env.json", _json_bytes(environment))

    def write_records(self, requests: "pl.DataFrame", steps: "pl.DataFrame") -> None:
        """`requests.parquet` and `steps.parquet`, with the columns of `engine.records`."""
        self._write_table("requests.parquet", requests)
        self._write_table("steps.parquet", steps)

    def write_service_logs(self, logs: "Mapping[str, pl.DataFrame]", page_tokens: int) -> None:
        """`logs/NAME.parquet`: what a service would have logged; each file says how many tokens a KV block has."""
        _make(self.path / LOGS)
        for name, log in logs.items():
            self._write_table(f"{LOGS}/{name}.parquet", log, {LOG_BLOCK_TOKENS: str(page_tokens)})

    def write_events(self, lines: Iterable[str]) -> None:
        """`events.jsonl`: one JSON object a line, line ends included."""
        self._write("events.jsonl", "".join(lines).encode())

    def write_outputs(self, lines: Iterable[str]) -> None:
        """`outputs.jsonl`, what a real run generated; no file where there is nothing."""
        content = "".join(lines)
        if content:
            self._write("outputs.jsonl", content.encode())

    def write_tape(self, rows: "np.ndarray") -> None:
        """`tape.npy`: what a real run was told about time (`engine.tape`), for `run.py --replay`."""
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        self._write("tape.npy", buffer.getbuffer())

    def write_fork(self, origin: Mapping[str, Any]) -> None:
        """`fork.json`: which run this one repeats, up to which step, and what is another from there on."""
        self._write("fork.json", _json_bytes(origin))

    def write_comparison(self, figures: str, plot: bytes, requests: "pl.DataFrame", steps: "pl.DataFrame") -> None:
        """`comparison.json`, `comparison.png`, and the records of the simulation that the run was compared with."""
        self._write("comparison.json", figures.encode())
        self._write("comparison.png", plot)
        self._write_table("simulated_requests.parquet", requests)
        self._write_table("simulated_steps.parquet", steps)

    def write_profile(self, files: Mapping[str, bytes]) -> None:
        """`profile/NAME`: what a profiler recorded of some plans, and where a step's time went."""
        _make(self.path / PROFILE)
        for name, content in files.items():
            self._write(f"{PROFILE}/{name}", content)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """`summary.json`: see `metrics.Summary.as_dict`."""
        self._write("summary.json", _json_bytes(summary))

    def write_report(self, html: str, markdown: str) -> None:
        """`report.html` and `report.md`."""
        self._write("report.html", html.encode())
        self._write("report.md", markdown.encode())

    def finish(self) -> None:
        """Marks the run as complete: `DONE` holds the names of its files."""
        entries = (*self.path.iterdir(), *(self.path / LOGS).glob("*"), *(self.path / PROFILE).glob("*"))
        names = sorted(
            str(entry.relative_to(self.path)) for entry in entries if entry.is_file() and entry.name[0] != "."
        )
        self._write("DONE", "".join(f"{name}\n" for name in names).encode())

    def _write_table(self, name: str, frame: "pl.DataFrame", metadata: dict[str, str] | None = None) -> None:
        buffer = io.BytesIO()  # so that a full disk is an OSError, not an error of the Parquet writer
        frame.write_parquet(buffer, metadata=metadata)
        self._write(name, buffer.getbuffer())

    def _write(self, name: str, content: bytes | memoryview) -> None:
        path = self.path / name
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            _discard(partial)
            raise _cannot_write(path, error) from error


def environment(
    *,
    device_kind: str,
    seeds: Mapping[str, int],
    trace_hash: str,
    weights_hash: str | None,
    repository: Path = _REPOSITORY,
) -> dict[str, Any]:
    """What `env.json` records about where a run was made. Imports none of the packages it names.

    Args:
      device_kind: as JAX calls it, or the chip that was simulated.
      seeds: purpose -> seed.
      trace_hash: of the trace's content. weights_hash: of the weights, None where there are none.
      repository: the checkout whose commit is recorded.
    """
    commit, dirty = git_state(repository)
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in VERSIONED_PACKAGES},
        "device_kind": device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "trace_hash": trace_hash,
        "weights_hash": weights_hash,
        "seeds": dict(seeds),
    }


def git_state(repository: Path = _REPOSITORY) -> tuple[str | None, bool | None]:
    """The commit of a checkout and whether files differ from it; (None, None) where git cannot tell."""
    commit = _git(repository, "rev-parse", "HEAD")
    changes = _git(repository, "status", "--porcelain")
    return (commit.strip(), None if changes is None else bool(changes)) if commit else (None, None)


def _git(repository: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(repository), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the write already failed; its error is the one to report


def _cannot_write(path: Path, error: OSError) -> CapacityError:
    reason = error.strerror or type(error).__name__
    return CapacityError(
        f"cannot write {path}: {reason}. What was written before it is kept. Free some space or choose another folder, "
        "then run again"
    )
