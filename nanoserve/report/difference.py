"""Two records of what should be one run: are they equal, and if not, where do they part first?

Equal means equal: the same bits of every number, a missing time like a missing time. The tables are compared in the
order in which a difference comes about: plans, then requests, then events, then tokens. Next: `run_folder`.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

TOKENS = "tokens"
_NOTHING = "nothing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place at which two records part.

    Attributes:
      table: plans, requests, events or tokens. row: which, in words. field: of the row.
      recorded, repeated: both values. rows: how many rows of the table differ.
    """

    table: str
    row: str
    field: str
    recorded: Any
    repeated: Any
    rows: int

    def __str__(self) -> str:
        place = f"{self.row}, {self.field}" if self.field else self.row
        values = f"recorded {self.recorded!r}, repeated {self.repeated!r}"
        return f"{place}: {values} ({self.rows:,} of the {self.table} differ)"


def table_difference(table: str, key: str, recorded: "pl.DataFrame", repeated: "pl.DataFrame") -> Difference | None:
    """Where two tables part.

    Args:
      table: their name. key: the column that names a row.
      recorded, repeated: rows in the same order; columns that only one of them has are a difference.
    """
    only = set(recorded.columns) ^ set(repeated.columns)
    if only:
        name = min(only)
        there, here = ("it" if name in each.columns else _NOTHING for each in (recorded, repeated))
        return Difference(table=table, row="columns", field=name, recorded=there, repeated=here, rows=recorded.height)
    both = min(recorded.height, repeated.height)
    unequal = {name: ~recorded[name].head(both).eq_missing(repeated[name].head(both)) for name in recorded.columns}
    firsts = {name: mask.arg_max() for name, mask in unequal.items() if mask.any()}
    beyond = abs(recorded.height - repeated.height)
    if firsts:
        field = min(firsts, key=lambda name: firsts[name] or 0)
        row = firsts[field] or 0
        values = (_plain(each[field][row]) for each in (recorded, repeated))
        rows = len(functools.reduce(operator.or_, unequal.values()).arg_true()) + beyond
        return _difference(table, f"{key} {recorded[key][row]}", field, *values, rows=rows)
    if beyond:
        counts = (f"{each.height:,} rows" for each in (recorded, repeated))
        longer = max(recorded, repeated, key=lambda each: each.height)
        return _difference(table, f"{key} {longer[key][both]}", "", *counts, rows=beyond)
    return None


def lines_difference(table: str, recorded: Iterable[str], repeated: Iterable[str]) -> Difference | None:
    """Where two files of lines part; rows are their lines, from 1."""
    pairs = enumerate(itertools.zip_longest(recorded, repeated, fillvalue=_NOTHING), start=1)
    unequal = [(number, *pair) for number, pair in pairs if pair[0] != pair[1]]
    if not unequal:
        return None
    number, there, here = unequal[0]
    return _difference(table, f"line {number}", "", there.rstrip("\n"), here.rstrip("\n"), rows=len(unequal))


def tokens_difference(
    recorded: Mapping[int, Sequence[int]], repeated: Mapping[int, Sequence[int]]
) -> Difference | None:
    """Where what requests generated parts: the first request, and the first of its tokens."""
    unequal = [
        index
        for index in sorted(recorded.keys() | repeated.keys())
        if list(recorded.get(index, ())) != list(repeated.get(index, ()))
    ]
    if not unequal:
        return None
    there, here = (each.get(unequal[0], ()) for each in (recorded, repeated))
    pairs = itertools.zip_longest(there, here, fillvalue=_NOTHING)
    place, values = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
    return _difference(TOKENS, f"request {unequal[0]}", f"token {place}", *values, rows=len(unequal))


def _difference(table: str, row: str, field: str, recorded: Any, repeated: Any, rows: int) -> Difference:
    return Difference(table=table, row=row, field=field, recorded=recorded, repeated=repeated, rows=rows)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | type(None)) else str(value)
