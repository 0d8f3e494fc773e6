"""Reads the tables of published facts that the registries are checked against, when they are at hand."""

import csv
import pathlib
import re

import pytest

FACTS = pathlib.Path(__file__).parents[3] / "shared" / "facts"


def rows(file: str) -> list[dict[str, str]]:
    """The rows of a table by column name; skips the test where the tables are not at hand."""
    path = FACTS / file
    if not path.exists():
        pytest.skip(f"the table of facts {file} is not at hand (looked for it at ../shared/facts)")
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def first_number(cell: str) -> float | None:
    """The figure that a cell leads with, e.g. 459 of `459 (no fp8 speed-up)`; None where it states none."""
    match = re.match(r"\s*~?(\d+(?:\.\d+)?)", cell)
    return float(match.group(1)) if match else None
