"""Small log sets for the tests of this room and of those that analyse what it reads."""

import datetime
from collections.abc import Sequence
from typing import Any

import polars as pl

from nanoserve.analysis.logs import schema
from nanoserve.analysis.logs.log_set import Joined, LogSet

MONDAY = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)

_TYPES = {name: dtype for columns in reversed(schema.COLUMNS.values()) for name, (dtype, _) in columns.items()}


def joined_of(
    *,
    start: datetime.datetime = MONDAY,
    telemetry: pl.DataFrame | None = None,
    errors: pl.DataFrame | None = None,
    block_tokens: int | None = 16,
    dated: bool = True,
    **columns: Sequence[Any],
) -> Joined:
    """A joined table from columns: times sorted, lengths 10 and 5 tokens where none are given."""
    count = len(next(iter(columns.values())))
    filled = {"time_s": range(count), "prompt_tokens": [10] * count, "response_tokens": [5] * count} | columns
    table = pl.DataFrame({name: pl.Series(values, dtype=_TYPES.get(name)) for name, values in filled.items()})
    table = table.sort("time_s", maintain_order=True)
    logs = LogSet(
        start=start,
        api=table.lazy(),
        telemetry=None if telemetry is None else telemetry.lazy(),
        errors=None if errors is None else errors.lazy(),
        block_tokens=block_tokens,
        dated=dated,
    )
    return Joined(
        logs=logs, table=table.lazy(), rows=count, columns=frozenset(table.columns), counts={"api_kept": count}
    )
