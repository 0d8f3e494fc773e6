"""Files as lazy tables of cells: Parquet with its types, CSV and JSONL as text.

A cell of text has no blanks around it; one that is empty is null. Text is not parsed into numbers here: a cell that is
no number is to be seen and counted (`cells`), not to end the reading. A line that is no JSON object, or has too few
cells, is a row of nulls. Nothing is read but the first lines, which say what the columns are. Next: `match`, what the
columns are.
"""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any, Literal

import polars as pl

from nanoserve.specs.errors import TraceError, nearest

_PARQUET, _GZIP, _ZSTD, _XZ = b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"
_HEAD_BYTES = 1 << 20
_HEAD_LINES = 1000
_SEPARATORS = ",;\t|"


@dataclasses.dataclass(frozen=True)
class Source:
    """A file.

    Attributes:
      path: of it. kind: what is in it. cells: its table, lazily; text unless `kind` is Parquet.
      names: of the columns, as the file has them.
    """

    path: Path
    kind: Literal["Parquet", "CSV", "JSONL"]
    cells: pl.LazyFrame
    names: tuple[str, ...]


def scan(path: Path) -> Source:
    """Looks into a file.

    Raises:
      TraceError: it is missing, empty, packed in a way that cannot be streamed, or of no known kind.
    """
    head = _head(path)
    try:
        if head.startswith(_PARQUET):
            return _parquet(path)
        first = head.lstrip()[:1]
        if first == b"{":
            return _jsonl(path, head)
        if first == b"[":
            raise TraceError(f"{path}: is one JSON array. Write one object a line (JSONL): jq -c '.[]' FILE")
        return _csv(path, head)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TraceError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _parquet(path: Path) -> Source:
    cells = pl.scan_parquet(path)
    return Source(path, "Parquet", cells, tuple(cells.collect_schema().names()))


def _csv(path: Path, head: bytes) -> Source:
    header = head.splitlines()[0].decode("utf-8-sig", errors="replace")
    separator = max(_SEPARATORS, key=header.count)
    cells = pl.scan_csv(
        path,
        separator=separator,
        infer_schema=False,
        truncate_ragged_lines=True,
        encoding="utf8-lossy",
        raise_if_empty=False,
    )
    return Source(path, "CSV", _without_blanks(cells), tuple(cells.collect_schema().names()))


def _jsonl(path: Path, head: bytes) -> Source:
    """Keys of the first lines are the columns; `usage.prompt_tokens` is a key of an object within."""
    keys = _columns_in(head)
    tops = dict.fromkeys(key.split(".", 1)[0] for key in keys)
    within = {top: [key.split(".", 1)[1] for key in keys if key.startswith(f"{top}.")] for top in tops}
    types = {top: pl.Struct(dict.fromkeys(names, pl.String)) if names else pl.String() for top, names in within.items()}
    columns = [
        pl.col(top).struct.field(name).alias(f"{top}.{name}") if name else pl.col(top)
        for top, names in within.items()
        for name in names or [""]
    ]
    cells = pl.scan_ndjson(path, schema=types).select(columns)
    return Source(path, "JSONL", _without_blanks(cells), tuple(keys))


def surviving_bad_lines(source: Source) -> Source:
    """The same file, read so that a line that is no JSON object is a row of nulls; itself, if it has none.

    Looking a column up in every line takes twenty times as long as parsing the line, which ends at the first bad one.
    """
    if source.kind != "JSONL":
        return source
    try:
        source.cells.select(pl.all().null_count()).collect(engine="streaming")
        return source
    except pl.exceptions.ComputeError:
        lines = pl.scan_lines(source.path).filter(pl.col("line").str.strip_chars() != "")
        cells = lines.select(pl.col("line").str.json_path_match(_json_path(key)).alias(key) for key in source.names)
        return dataclasses.replace(source, cells=_without_blanks(cells))


def _columns_in(head: bytes) -> list[str]:
    """Keys of the first lines, in order of appearance; an object's own key only where it is one in every line."""
    keys: dict[str, None] = {}
    for line in head.splitlines()[:_HEAD_LINES]:
        keys.update(dict.fromkeys(_keys(line)))
    objects = {key.split(".", 1)[0] for key in keys if "." in key}
    return [key for key in keys if key not in objects]


def _without_blanks(cells: pl.LazyFrame) -> pl.LazyFrame:
    """Text without blanks around it; null where there is none."""
    text = pl.all().str.strip_chars()
    return cells.select(pl.when(text != "").then(text))


def _keys(line: bytes) -> list[str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return [] if not isinstance(row, dict) else [key for name, value in row.items() for key in _leaves(name, value)]


def _leaves(name: str, value: Any) -> list[str]:
    """The keys of an object within, or the name itself; a name with a dot would be taken for one, and is left out."""
    if isinstance(value, dict):
        return [f"{name}.{key}" for key in value]
    return [] if "." in name else [name]


def _json_path(key: str) -> str:
    return "$" + "".join(f"['{part}']" for part in key.split(".", 1))


def is_xz(path: Path) -> bool:
    """Whether a file is packed with xz, which cannot be streamed; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_XZ)) == _XZ
    except OSError:
        return False


def _head(path: Path) -> bytes:
    """The first bytes, unpacked."""
    try:
        with path.open("rb") as file:
            magic = file.read(8)
        if magic.startswith(_GZIP):
            with gzip.open(path) as file:
                head = file.read(_HEAD_BYTES)
        elif magic.startswith(_XZ):
            raise TraceError(f"{path}: is packed with xz, which cannot be streamed. Unpack it, or pack it with gzip")
        else:
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise TraceError(f"{path}: no such file.{nearest(path.name, beside)}") from None
    except (OSError, EOFError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None
    if magic.startswith(_ZSTD):
        raise TraceError(f"{path}: is packed with zstd, which cannot be looked into. Unpack it, or pack it with gzip")
    if not head.strip():
        raise TraceError(f"{path}: the file is empty")
    return head
