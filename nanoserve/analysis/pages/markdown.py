"""The laboratory's report as Markdown: the twin of the page without its plots, to paste and to compare with `diff`."""

from collections.abc import Sequence

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.pages.content import Page, computed, missing_table, tables_of
from nanoserve.analysis.pages.html import rows_text
from nanoserve.report.markdown import escaped, fenced, table_of


def render_markdown(page: Page) -> str:
    """Renders a report; returns GitHub-flavoured Markdown."""
    parts = [f"# {escaped(page.title)}", *map(escaped, page.scope)]
    for chapter, findings in page.chapters():
        parts += [f"## {escaped(chapter.title)}", escaped(chapter.asks)]
        parts += ["\n".join(f"- {escaped(note)}" for note in page.notes_of(chapter))]
        parts += [part for finding in computed(findings) for part in finding_parts(finding)]
        unknown = missing_table(findings)
        parts += [table_of(unknown)] if unknown else []
    if page.config:
        parts += ["## The recommended config", fenced(page.config)]
    if page.command:
        parts += [f"Made with `{page.command}`"]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def finding_parts(finding: Finding) -> Sequence[str]:
    """A finding as paragraphs and tables of Markdown."""
    because = [escaped(sentence) for sentence in finding.because]
    return [
        f"**{escaped(finding.title)}** ({rows_text(finding).rstrip('.')})",
        *because,
        *map(table_of, tables_of(finding)),
    ]
