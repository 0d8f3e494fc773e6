"""Which files a path stands for: a file itself, the logs in a folder, or those of a run."""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from nanoserve.report.run_folder import LOG_BLOCK_TOKENS
from nanoserve.specs.errors import TraceError, nearest

_API, _SAMPLE = "api.parquet", "sample.parquet"
_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson", ".csv.gz", ".jsonl.gz")
_PAGE_TOKENS = re.compile(r"^Engine(?:Config)?\.page_tokens\s*=\s*(\d+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Found:
    """Files to read, and the tokens of a KV block where a run's config says them."""

    files: tuple[Path, ...]
    block_tokens: int | None


def log_files(paths: Sequence[Path]) -> Found:
    """Files that paths stand for.

    A run's folder stands for those in its `logs` folder; the sample there holds the requests of the api log once more,
    and is left out beside it.

    Raises:
      TraceError: a path that is not there, a folder without logs, or no path at all.
    """
    if not paths:
        raise TraceError("no log was named. Name a trace, the files of a service's logs, or a run's folder")
    files = [file for path in paths for file in _files(path)]
    known = [tokens for file in files if (tokens := _block_tokens(file)) is not None]
    return Found(tuple(dict.fromkeys(files)), known[0] if known else None)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise TraceError(f"{path}: no such file.{nearest(path.name, beside)}")
        return [path]
    folder = path / "logs" if (path / "logs").is_dir() else path
    files = sorted(file for file in folder.iterdir() if file.name.endswith(_SUFFIXES))
    if folder / _API in files:
        files = [file for file in files if file.name != _SAMPLE]
    if folder == path and (path / "steps.parquet").exists():
        raise TraceError(f"{path}: this run kept no logs. Set ServiceLogs.start, a date, and run it again")
    if not files:
        raise TraceError(f"{path}: no log in this folder. Wanted files that end in {', '.join(_SUFFIXES)}")
    return files


def _block_tokens(file: Path) -> int | None:
    """What a log's own file, or the config beside a run's logs, says of the size of its pages."""
    if file.suffix == ".parquet":
        with contextlib.suppress(pl.exceptions.PolarsError, OSError):  # whoever reads the file says what is wrong
            if stated := pl.read_parquet_metadata(file).get(LOG_BLOCK_TOKENS):
                return int(stated)
    config = file.parent.parent / "operative.gin"
    if file.parent.name != "logs" or not config.exists():
        return None
    found = _PAGE_TOKENS.search(config.read_text())
    return int(found.group(1)) if found else None
