"""The table of published serving measurements, row by row, as it stands: no interpretation.

Every cell that states no figure is None. Which rows can be replayed, and how, is for `rows`.
"""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from nanoserve.specs.errors import TraceError

COLUMNS = (
    "source",
    "hardware",
    "n_gpus",
    "model",
    "precision",
    "engine",
    "tp",
    "isl",
    "osl",
    "concurrency",
    "mode",
    "output_tok_s",
    "ttft_ms",
    "tpot_ms",
    "notes",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One measurement.

    Attributes:
      line: in the file.
      source, hardware, model, precision, engine, mode, notes: as written.
      chips: number of chips. tensor: tensor-parallel ways. prompt_tokens, output_tokens: lengths asked for.
      concurrency: requests under way. Each is None where the row states no number.
      ttft_s, tpot_s: means over requests. output_tokens_per_s: of the whole system. None where not published.
      derived_throughput: the table computed the throughput from the two times, so it is no measurement of its own.
    """

    line: int
    source: str
    hardware: str
    model: str
    precision: str
    engine: str
    mode: str
    notes: str
    chips: int | None
    tensor: int | None
    prompt_tokens: int | None
    output_tokens: int | None
    concurrency: int | None
    ttft_s: float | None
    tpot_s: float | None
    output_tokens_per_s: float | None

    @property
    def derived_throughput(self) -> bool:
        """Whether the row says that its throughput was derived."""
        return "tok/s derived" in self.notes


def read_published(path: str | Path) -> list[PublishedRow]:
    """Reads the table.

    Raises:
      TraceError: it cannot be read, or a column is missing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}. It holds the published rows that are replayed") from error
    reader = csv.DictReader(text.splitlines())
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise TraceError(f"{path}:1: no column {', '.join(missing)}. Is it the table of published throughput?")
    return [_row(reader.line_num, cells) for cells in reader]


def _row(line: int, cells: Mapping[str, str]) -> PublishedRow:
    return PublishedRow(
        line=line,
        **{name: cells[name] for name in ("source", "hardware", "model", "precision", "engine", "mode", "notes")},
        chips=_whole(cells["n_gpus"]),
        tensor=_whole(cells["tp"]),
        prompt_tokens=_whole(cells["isl"]),
        output_tokens=_whole(cells["osl"]),
        concurrency=_whole(cells["concurrency"]),
        ttft_s=_seconds(cells["ttft_ms"]),
        tpot_s=_seconds(cells["tpot_ms"]),
        output_tokens_per_s=_number(cells["output_tok_s"]),
    )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _whole(cell: str) -> int | None:
    number = _number(cell)
    return None if number is None else round(number)


def _seconds(cell: str) -> float | None:
    number = _number(cell)
    return None if number is None else number / 1e3
