"""The laboratory's report as one HTML page: a contents list, then the chapters of the reasoning and their findings.

No script and no file beside it. A finding is a figure under its own sentence where it has a plot, else a sentence with
a table; the number of rows behind it always stands below. Next: `plots`, which draws findings.
"""

from collections.abc import Mapping, Sequence

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.pages.content import Chapter, Page, computed, missing_table, tables_of
from nanoserve.report import elements
from nanoserve.report.content import Table
from nanoserve.report.theme import Plot

_WIDE_COLUMNS = 4  # a table with more columns gets the whole width


def render_html(page: Page, plots: Mapping[str, Plot]) -> str:
    """Renders a report.

    Args:
      page: what it says. plots: those drawn of its findings, by key (`plots.draw_all`).

    Returns:
      A complete HTML document.
    """
    chapters = page.chapters()
    sections = [_section(page, chapter, findings, plots) for chapter, findings in chapters]
    return elements.document(f"{page.title}: nanoserve laboratory", _header(page, chapters), *sections, _end(page))


def _header(page: Page, chapters: Sequence[tuple[Chapter, list[Finding]]]) -> str:
    links = "".join(
        f'<li><a href="#{chapter.part}">{elements.escape(chapter.title)}</a> {elements.escape(chapter.asks)}</li>'
        for chapter, _ in chapters
    )
    scope = "".join(map(elements.paragraph, page.scope))
    tiles = page.headline()
    kind = '<p class="kind">nanoserve laboratory</p>'
    return (
        f"<header>\n{kind}\n<h1>{elements.escape(page.title)}</h1>\n{scope}</header>\n"
        f"{elements.tiles(tiles) if tiles else ''}"
        f'<nav><ol class="contents">{links}</ol></nav>\n'
    )


def _section(page: Page, chapter: Chapter, findings: Sequence[Finding], plots: Mapping[str, Plot]) -> str:
    parts = [elements.paragraph(chapter.asks), elements.listed(page.notes_of(chapter))]
    parts += [_group(group, plots) for group in _groups(computed(findings), plots)]
    unknown = missing_table(findings)
    return elements.section(chapter.title, *parts, elements.table(unknown) if unknown else "", anchor=chapter.part)


def _groups(findings: Sequence[Finding], plots: Mapping[str, Plot]) -> list[list[Finding]]:
    """Neighbours that stand side by side; a wide finding stands by itself."""
    groups: list[list[Finding]] = []
    for finding in findings:
        if groups and not _is_wide(finding, plots) and not _is_wide(groups[-1][0], plots):
            groups[-1].append(finding)
        else:
            groups.append([finding])
    return groups


def _group(group: Sequence[Finding], plots: Mapping[str, Plot]) -> str:
    if _is_wide(group[0], plots):
        return _finding(group[0], plots)
    return elements.columns(_finding(finding, plots) for finding in group)


def _is_wide(finding: Finding, plots: Mapping[str, Plot]) -> bool:
    return any(len(table.header) > _WIDE_COLUMNS for table in tables_of(finding)) and finding.key not in plots


def _finding(finding: Finding, plots: Mapping[str, Plot]) -> str:
    plot = plots.get(finding.key)
    tables = "".join(map(_table, tables_of(finding)))
    because = "".join(map(elements.paragraph, finding.because))
    if plot is not None:
        folded = f"<details><summary>The numbers</summary>{tables}</details>" if tables else ""
        return elements.figure(plot) + because + folded
    note = f'<p class="note">{elements.escape(rows_text(finding))}</p>'
    return f"<figcaption>{elements.escape(finding.title)}</figcaption>{because}{tables}{note}\n"


def _table(table: Table) -> str:
    return elements.table(table, bare=not any(table.header))


def rows_text(finding: Finding) -> str:
    """How many rows are behind a finding, in words."""
    return f"{finding.rows:,} rows." if finding.rows != 1 else "1 row."


def _end(page: Page) -> str:
    config = elements.folded("The recommended config", page.config) if page.config else ""
    made = elements.paragraph(f"Made with: {page.command}") if page.command else ""
    return elements.section("Made with", made, config, anchor="made") if made or config else ""
