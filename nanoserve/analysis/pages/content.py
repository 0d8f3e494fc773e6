"""What a laboratory report says: chapters of findings in the order of the reasoning, and their numbers as text.

A `Page` is everything that the HTML, Markdown and JSON faces need; they set the same findings in the same order, so
nothing can be in one and not in another. A finding belongs to the chapter of its key's first part. Next: `html`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from nanoserve.analysis.finding import Finding, Value
from nanoserve.report import units
from nanoserve.report.content import Table, Tile

_LONGEST_TEXT = 80  # of a value in a table: what is longer belongs into a sentence
_RANGE = 2  # numbers in a list that is a range
_LONGEST_CELL = 40  # of a table of numbers: with longer ones it is one of words


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A part of the reasoning: the first part of its findings' keys, its heading, and the question that it answers."""

    part: str
    title: str
    asks: str


CHAPTERS = (
    Chapter("logs", "What came in", "Which logs were read, and what was wrong in them?"),
    Chapter("anatomy", "The load", "Who asks for how much, and when?"),
    Chapter("usage", "The machine", "How is it used, and what is left?"),
    Chapter("failures", "What fails", "Which requests are lost, when, and at what load?"),
    Chapter("causes", "Why", "Which causes explain it, and what speaks for and against each?"),
    Chapter("experiments", "Experiments on the trace", "What does each knob do to these requests?"),
    Chapter("recommend", "What to change", "Which config follows, and from which evidence?"),
    Chapter("proof", "Proof", "Does it help in hours that the choice never saw?"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """A report.

    Attributes:
      title: what was analysed. scope: sentences on which rows of which time.
      findings: in any order; within a chapter they keep it.
      notes: what reading the logs found and did, a sentence each.
      config: the recommended config as text; empty where none was asked for.
      command: how the page was made.
    """

    title: str
    scope: tuple[str, ...]
    findings: Sequence[Finding]
    notes: tuple[str, ...] = ()
    config: str = ""
    command: str = ""

    def chapters(self) -> list[tuple[Chapter, list[Finding]]]:
        """Chapters that have something to say, with their findings."""
        found = [(chapter, [each for each in self.findings if part_of(each) == chapter.part]) for chapter in CHAPTERS]
        return [(chapter, each) for chapter, each in found if each or self.notes_of(chapter)]

    def notes_of(self, chapter: Chapter) -> tuple[str, ...]:
        """What reading found, in the chapter about it."""
        return self.notes if chapter is CHAPTERS[0] else ()

    def headline(self) -> list[Tile]:
        """The numbers at the top: findings say themselves which of their values belong there."""
        return [tile for finding in self.findings for tile in tiles_of(finding)]


def part_of(finding: Finding) -> str:
    """The first part of a finding's key."""
    return finding.key.split(".")[0]


def computed(findings: Iterable[Finding]) -> list[Finding]:
    """Those that could be computed."""
    return [finding for finding in findings if finding.missing is None]


def missing_table(findings: Iterable[Finding]) -> Table | None:
    """What could not be computed, and why; None where everything could."""
    rows = [(each.title.removesuffix(": not computed"), each.missing or "") for each in findings if each.missing]
    return Table(("not computed", "because"), rows, prose=True) if rows else None


def tables_of(finding: Finding) -> list[Table]:
    """A finding's values as tables: those that are tables themselves; where there are none, the single ones."""
    values = finding.values
    tables = [_rows_table(value) for value in values.values() if is_rows(value)]
    tables += [_named_table(rows) for rows in _alike(values)]
    single = [(label_of(name), text_of(name, value)) for name, value in values.items() if _is_plain(value)]
    return tables or ([Table(("", ""), single)] if single else [])


def _alike(values: Mapping[str, Value]) -> list[dict[str, dict[str, Any]]]:
    """Groups of values that are mappings with the same names: together they are a table, a row each."""
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value and all(map(_is_plain, value.values())):
            groups.setdefault(tuple(value), {})[name] = value
    return [group for group in groups.values() if len(group) > 1]


def _named_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = list(next(iter(rows.values())))
    cells = [
        (label_of(name), *(text_of(_unit_of(name, field), row[field]) for field in columns))
        for name, row in rows.items()
    ]
    return Table(("", *map(label_of, columns)), cells)


def _unit_of(name: str, field: str) -> str:
    """The name that says a cell's unit: the column's, or the row's where the column is a statistic of it."""
    return field if any(field.endswith(suffix) for suffix in _SUFFIXES) or field in _COUNTS else name


def is_rows(value: Value) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a value is a table: a list of dictionaries with the same keys."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, dict) and row.keys() == value[0].keys() for row in value)
    )


def _rows_table(rows: list[dict[str, Any]]) -> Table:
    cells = [tuple(text_of(field, value) for field, value in row.items()) for row in rows]
    wordy = any(len(cell) > _LONGEST_CELL for row in cells for cell in row)
    return Table([label_of(field) for field in rows[0]], cells, prose=wordy)


def _is_plain(value: Value) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT
    if isinstance(value, list):
        return len(value) == _RANGE and all(isinstance(each, int | float) for each in value)
    return value is None or isinstance(value, bool | int | float)


_SUFFIXES = ("_per_s", "_rps", "_s", "_tokens", "_bytes", "_share", "_blocks", "_c")
_COUNTS = ("count", "missing")
_WORDS = {
    "_per_s": "/s",
    "_rps": " (requests/s)",
    "_blocks": " (blocks)",
    "_tokens": " (tokens)",
    "_c": " (°C)",
    "_share": " share",
}


def label_of(name: str) -> str:
    """A value's name in words; the unit is named where the number does not carry it."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix).replace("_", " ") + _WORDS.get(suffix, "")
    return name.replace("_", " ")


def text_of(name: str, value: Value) -> str:
    """A value in words, by the unit in its name."""
    if value is None:
        return units.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number_text(name, value)
    if isinstance(value, list) and _is_plain(value):
        return " to ".join(text_of(name, each) for each in value)
    return str(value)


def _number_text(name: str, value: float) -> str:
    if name.endswith("_share"):
        return units.share(value)
    if name.endswith("_bytes"):
        return f"{units.short(value)}B"
    if name.endswith("_s") and not name.endswith("_per_s"):
        return units.time(value) if value >= 0 else f"-{units.time(-value)}"
    if isinstance(value, int) or float(value).is_integer():
        return units.count(value)
    return units.significant(value)


def tiles_of(finding: Finding) -> list[Tile]:
    """The headline numbers of a finding, of the few kinds that have any."""
    named = _TILES.get(finding.key)
    if named is None or finding.missing is not None or finding.values.get(named[1]) is None:
        return []
    label, name, sign = named
    change, load = finding.values[name], finding.values.get("load")
    if not isinstance(change, int | float) or not isinstance(load, int | float):
        return []
    at = "at the logged load" if load == 1 else f"at {load:.2f} times the logged load"
    return [Tile(label, f"{change:{sign}.1%}", f"in held-out time, {at}")]


_TILES = {
    "proof.failures": ("failures cut by", "cut_share", ""),
    "proof.goodput": ("goodput", "change_share", "+"),
}
"""Key -> label, value, and the sign that positive values are written with."""


def as_json(page: Page) -> dict[str, Any]:
    """The findings as JSON values: everything but the arrays of the plots; NaN becomes None."""
    return {
        "title": page.title,
        "scope": list(page.scope),
        "command": page.command,
        "notes": list(page.notes),
        "findings": [_finding_json(finding) for finding in page.findings],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "key": finding.key,
        "title": finding.title,
        "rows": finding.rows,
        "values": json_value(finding.values),
        "missing": finding.missing,
        "because": list(finding.because),
    }


def finding_of(written: Mapping[str, Any]) -> Finding:
    """A finding of `as_json`, read back: all of it but the arrays of its plot."""
    return Finding(
        key=written["key"],
        title=written["title"],
        rows=written["rows"],
        values=written["values"],
        missing=written["missing"],
        because=tuple(written["because"]),
    )


def json_value(value: Any) -> Any:
    """A value that `json` writes and every reader reads."""
    if isinstance(value, Mapping):
        return {str(name): json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [json_value(each) for each in value]
    if isinstance(value, np.generic):
        return json_value(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
