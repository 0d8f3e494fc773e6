"""The summary on a terminal: coloured where there is one, plain text in a pipe."""

from typing import TYPE_CHECKING

from nanoserve.report.content import (
    Table,
    bound_table,
    finish_table,
    headline,
    latency_table,
    memory_table,
    objective_line,
    throughput_table,
)
from nanoserve.report.metrics import Summary
from nanoserve.report.profile import profile_intro, profile_table
from nanoserve.roofline.profiled import Profile

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable


def print_summary(summary: Summary, console: "Console | None" = None) -> None:
    """Prints the headline numbers and the tables behind them.

    Args:
      summary: of one run.
      console: where to; None means standard output.
    """
    from rich.columns import Columns
    from rich.console import Console

    console = console or Console(highlight=False)
    console.print(_tiles(summary))
    if objective := objective_line(summary):
        console.print(objective, markup=False)
    tables = (throughput_table(summary), bound_table(summary), memory_table(summary), finish_table(summary))
    console.print(_table(latency_table(summary)), f"t0 is the {summary.t0}")
    console.print(Columns([_table(table) for table in tables], padding=(0, 5)))


def print_profile(profile: Profile, console: "Console | None" = None) -> None:
    """Prints where a step's time went; arguments as for `print_summary`."""
    from rich.console import Console

    console = console or Console(highlight=False)
    for text in profile_intro(profile):
        console.print(text, markup=False)
    for kind in profile.kinds:
        whole = profile_table(kind)
        narrow = [[row[column] for column in (0, 1, 2, 3, 5)] for row in (whole.header, *whole.rows)]
        console.print(_table(Table(narrow[0], narrow[1:])))


def _tiles(summary: Summary) -> "RichTable":
    from rich.table import Table as RichTable

    grid = RichTable.grid(padding=(0, 2))
    for tile in headline(summary):
        grid.add_row(tile.label, f"[bold]{tile.value}[/]", f"[dim]{tile.detail}[/]")
    return grid


def _table(table: Table) -> "RenderableType":
    from rich.padding import Padding
    from rich.table import Table as RichTable

    made = RichTable(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for number, name in enumerate(table.header):
        made.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in table.rows:
        made.add_row(*row)
    return Padding(made, (1, 0, 0, 0), expand=False)
