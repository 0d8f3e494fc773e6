"""Small tables by hand: every column of `engine.records`, zero unless named."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from nanoserve.engine.records import COST_COLUMNS, REQUEST_COLUMNS, STEP_COLUMNS

_TEXT = {"kind": "decode", "bound": "weights", "finish_reason": "length", "detail": ""}
_SCHEMA_FLOATS = {name for name in (*STEP_COLUMNS, *COST_COLUMNS, *REQUEST_COLUMNS) if name.endswith("_s")}


def steps_table(*plans: dict[str, Any]) -> pl.DataFrame:
    """One row a plan; `first_step_s` defaults to an equal share of `duration_s`."""
    rows = []
    for number, plan in enumerate(plans):
        steps = plan.get("steps", 1)
        row = {"step": number, "steps": steps, "first_step_s": plan["duration_s"] / steps} | plan
        rows.append(row)
    return _table((*STEP_COLUMNS, *COST_COLUMNS), rows)


def requests_table(*requests: dict[str, Any]) -> pl.DataFrame:
    """One row a request, finished by length unless said otherwise."""
    rows = [{"request": number, "sent_s": request["arrival_s"]} | request for number, request in enumerate(requests)]
    return _table(tuple(REQUEST_COLUMNS), rows)


def _table(columns: Sequence[str], rows: list[dict[str, Any]]) -> pl.DataFrame:
    types = {name: pl.String if name in _TEXT else pl.Float64 if name in _SCHEMA_FLOATS else None for name in columns}
    data = {name: [row.get(name, _TEXT.get(name, 0)) for row in rows] for name in columns}
    series = [pl.Series(name, data[name], dtype=types[name], strict=False) for name in columns]
    return pl.DataFrame([s.cast(pl.Int64) if s.dtype == pl.Null else s for s in series])
