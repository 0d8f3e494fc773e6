"""The report as Markdown: the same tables without the plots, to paste into an issue or to compare with `diff`."""

from collections.abc import Sequence

from nanoserve.report.content import (
    ReportData,
    Table,
    bound_table,
    by_kind,
    constants_table,
    environment_table,
    finish_table,
    headline,
    latency_table,
    memory_table,
    objective_line,
    padding_table,
    throughput_table,
)
from nanoserve.report.definitions import DEFINITIONS


def render_markdown(data: ReportData) -> str:
    """Renders the report.

    Args:
      data: the run.

    Returns:
      GitHub-flavoured Markdown.
    """
    summary = data.summary
    tiles = Table(("", "", ""), [(tile.label, tile.value, tile.detail) for tile in headline(summary)])
    sections = (
        ("What bounds it", _table(bound_table(summary))),
        ("Latency", f"t0 is the {summary.t0}.\n\n{_table(latency_table(summary))}"),
        ("Throughput", _table(throughput_table(summary))),
        ("Memory and queue", _table(memory_table(summary))),
        ("Requests", _table(finish_table(summary))),
        *((title, _table(table)) for title, table in zip(("Replicas", "Pools"), data.fleet, strict=False)),
        ("Padding", _table(padding_table(by_kind(data.steps), summary))),
        ("Where the numbers come from", _table(constants_table(data.constants))),
        ("What the words mean", "".join(f"- **{_cell(word)}**: {_cell(text)}\n" for word, text in DEFINITIONS)),
        ("Made with", _table(environment_table(data.environment))),
        ("Configuration", _fenced(data.operative)),
    )
    lines = [data.how, objective_line(summary), f"{summary.issued:,} requests on {data.roof.chips} × {data.roof.chip}."]
    head = f"# {data.title}\n\n" + "\n\n".join(_cell(line) for line in lines if line) + f"\n\n{_table(tiles)}"
    return head + "".join(f"\n## {title}\n\n{body}" for title, body in sections)


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; the first column is text, the others are aligned to the right."""
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _table(table: Table) -> str:
    rows = [table.header, *table.rows]
    rule = ["---", *(["---" if table.prose else "---:"] * (len(table.header) - 1))]
    lines = [[_cell(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def _cell(text: str) -> str:
    for mark in "\\|*_<`":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.rstrip()}\n{fence}\n"
