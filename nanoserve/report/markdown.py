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
from nanoserve.report.profile import TITLE, kernel_table, profile_intro, profile_table
from nanoserve.roofline.profiled import Profile


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
        ("What bounds it", table_of(bound_table(summary))),
        *([(TITLE, _profiled(data.profile))] if data.profile else []),
        ("Latency", f"t0 is the {summary.t0}.\n\n{table_of(latency_table(summary))}"),
        ("Throughput", table_of(throughput_table(summary))),
        ("Memory and queue", table_of(memory_table(summary))),
        ("Requests", table_of(finish_table(summary))),
        *((title, table_of(table)) for title, table in zip(("Replicas", "Pools"), data.fleet, strict=False)),
        ("Padding", table_of(padding_table(by_kind(data.steps), summary))),
        ("Where the numbers come from", table_of(constants_table(data.constants))),
        ("What the words mean", "".join(f"- **{escaped(word)}**: {escaped(text)}\n" for word, text in DEFINITIONS)),
        ("Made with", table_of(environment_table(data.environment))),
        ("Configuration", fenced(data.operative)),
    )
    lines = [data.how, objective_line(summary), f"{summary.issued:,} requests on {data.roof.chips} × {data.roof.chip}."]
    head = f"# {data.title}\n\n" + "\n\n".join(escaped(line) for line in lines if line) + f"\n\n{table_of(tiles)}"
    return head + "".join(f"\n## {title}\n\n{body}" for title, body in sections)


def _profiled(profile: Profile) -> str:
    tables = [table_of(make(kind)) for kind in profile.kinds for make in (profile_table, kernel_table)]
    return "\n\n".join([*map(escaped, profile_intro(profile)), "\n".join(tables)])


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; the first column is text, the others are aligned to the right."""
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_of(table: Table) -> str:
    """A table of plain text."""
    rows = [table.header, *table.rows]
    rule = ["---", *(["---" if table.prose else "---:"] * (len(table.header) - 1))]
    lines = [[escaped(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def escaped(plain: str) -> str:
    """Plain text as Markdown: marks escaped, on one line."""
    for mark in "\\|*_<`":
        plain = plain.replace(mark, f"\\{mark}")
    return plain.replace("\n", " ")


def fenced(verbatim: str) -> str:
    """Text as it is, in a block of its own."""
    fence = "```"
    while fence in verbatim:
        fence += "`"
    return f"{fence}\n{verbatim.rstrip()}\n{fence}\n"
