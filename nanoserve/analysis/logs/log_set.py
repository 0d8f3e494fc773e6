"""What reading ends in, and what joining ends in: the logs of one service, and one table of its requests.

Invariants: every table is sorted by `time_s`, has canonical names (`schema`) and only columns that some file had; times
of all tables are of one clock. Tables are lazy: of a file larger than memory only the columns and rows that are asked
for are ever held. Nothing is dropped unsaid: `counts` adds up, and `notes` says what was set aside.
Next: `read` and `join`, which make these; `calendar`, for hours and weekdays.
"""

import dataclasses
import datetime
from collections.abc import Iterator, Mapping

import polars as pl

from nanoserve.analysis.logs.scratch import Scratch
from nanoserve.trace.types import Ragged

BATCH_ROWS = 1_000_000
"""Rows of a batch: ten columns of so many are 80 MB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSet:
    """The logs of one service over one span of time, read and cleaned; absent logs are None, absent columns not there.

    Attributes:
      start: what time 0 of every table is, aware, in the time zone that hours and weekdays are counted in.
      api, telemetry, app, errors: tables with a subset of the columns of `schema`; api may carry those of app as well.
      notes: what reading found and did, a sentence each: columns matched, rows set aside, clocks compared.
      counts: rows by what became of them: `api_read` is the sum of `api_kept` and every `api_set_aside_*`; likewise
        for the other logs.
      block_tokens: tokens of a KV block, where known.
      dated: whether the files say what day it was; otherwise `start` is 1970 and hours of the day mean nothing.
      prefixes: ids of the whole blocks that each prompt begins with, one row a row of `api`, where the file has them.
      prefix_block_tokens: tokens of those blocks.
      scratch: keeps the temporary files of large tables as long as this lives.
    """

    start: datetime.datetime
    api: pl.LazyFrame
    telemetry: pl.LazyFrame | None = None
    app: pl.LazyFrame | None = None
    errors: pl.LazyFrame | None = None
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    block_tokens: int | None = None
    dated: bool = True
    prefixes: Ragged | None = None
    prefix_block_tokens: int | None = None
    scratch: Scratch | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """One row a request, with everything that any log says about it.

    Columns: those of the api log; `user_id`, `session_id`, `turn`, `region` of the application; `error_type`,
    `traceback`, `error_time_s` of the request's first error, null where there was none; and, as `bucket_...`, the
    telemetry of the bucket in which it arrived.

    Attributes:
      logs: what was joined; its telemetry and errors remain whole there.
      table: sorted by `time_s`. rows: of it. columns: that it has.
      counts: as in `LogSet`, and how many rows of each side found the other.
      notes: those of the logs, then the join's own.
    """

    logs: LogSet
    table: pl.LazyFrame
    rows: int
    columns: frozenset[str]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def start(self) -> datetime.datetime:
        """What time 0 is; see `LogSet`."""
        return self.logs.start

    @property
    def telemetry(self) -> pl.LazyFrame | None:
        """The telemetry log, whole."""
        return self.logs.telemetry

    @property
    def errors(self) -> pl.LazyFrame | None:
        """The error log, whole: errors of no known request among them."""
        return self.logs.errors

    @property
    def block_tokens(self) -> int | None:
        """Tokens of a KV block, where known."""
        return self.logs.block_tokens

    def has(self, *columns: str) -> bool:
        """Whether the table has all of these columns."""
        return self.columns.issuperset(columns)

    def take(self, *columns: str) -> pl.DataFrame:
        """These columns of every row, in memory: 8 bytes a number and row."""
        return self.table.select(columns).collect(engine="streaming")

    def batches(self, *columns: str, rows: int = BATCH_ROWS) -> Iterator[pl.DataFrame]:
        """These columns, so many rows at a time, in order of time."""
        for first in range(0, self.rows, rows):
            yield self.table.select(columns).slice(first, rows).collect()
