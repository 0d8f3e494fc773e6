"""Where tables stand while they are worked on: in memory while they are small, in temporary Parquet files beyond that.

Invariant: memory is bounded by `ROWS_IN_MEMORY`, whatever the size of a table; a sort goes through the file once for
every so many rows. The files go when the last table set that was made of them does. Next: `clean`, the main user.
"""

import dataclasses
import itertools
import tempfile
from pathlib import Path

import polars as pl

ROWS_IN_MEMORY = 2_000_000


@dataclasses.dataclass
class Scratch:
    """Temporary files.

    Attributes:
      rows_in_memory: tables of more rows are put into files.
      folder: of the files, made when the first is written; its files go with this object.
    """

    rows_in_memory: int = ROWS_IN_MEMORY
    folder: "tempfile.TemporaryDirectory[str] | None" = None
    _files: int = 0

    def settled(self, table: pl.LazyFrame, rows: int | None = None) -> pl.LazyFrame:
        """The same table, computed: reading it again does not compute it again.

        Args:
          table: any. rows: of it, or a number it surely has not more than; None counts by a look at its source.
        """
        if (rows if rows is not None else count(table)) <= self.rows_in_memory:
            return table.collect(engine="streaming").lazy()
        path = self._path()
        table.sink_parquet(path, compression="lz4")
        return pl.scan_parquet(path)

    def sorted_by(self, table: pl.LazyFrame, key: str, rows: int) -> pl.LazyFrame:
        """The table in order of a column of integers without nulls; equal rows keep no particular order.

        Args:
          table: settled. key: the column. rows: of the table.
        """
        if rows <= self.rows_in_memory:
            return table.sort(key, maintain_order=True).collect().lazy()
        values = table.select(key).collect(engine="streaming")[key].sort()
        parts = -(-rows // self.rows_in_memory)
        edges = sorted({values[len(values) * part // parts] for part in range(1, parts)})
        return pl.scan_parquet([self._sorted_part(table, key, low, high) for low, high in _ranges(edges)])

    def _sorted_part(self, table: pl.LazyFrame, key: str, low: int | None, high: int | None) -> Path:
        inside = pl.lit(True)
        if low is not None:
            inside &= pl.col(key) >= low
        if high is not None:
            inside &= pl.col(key) < high
        path = self._path()
        table.filter(inside).collect(engine="streaming").sort(key, maintain_order=True).write_parquet(
            path, compression="lz4"
        )
        return path

    def _path(self) -> Path:
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="nanoserve_logs_")
        self._files += 1
        return Path(self.folder.name) / f"{self._files}.parquet"


def count(table: pl.LazyFrame) -> int:
    """Rows of a table."""
    return table.select(pl.len()).collect(engine="streaming").item()


def _ranges(edges: list[int]) -> list[tuple[int | None, int | None]]:
    """Neighbouring half-open ranges that cover everything; None is no bound."""
    return list(itertools.pairwise([None, *edges, None]))
