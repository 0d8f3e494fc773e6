"""The pieces that an HTML page is set from: a document, sections, columns, tiles, figures, tables; each returns markup.

Text given to them is plain and is escaped here. No script, no file beside the page. Next: `page_style` for the CSS,
`html` for the report of a run.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape as escape_markup

from nanoserve.report.content import Table, Tile
from nanoserve.report.page_style import CSS
from nanoserve.report.theme import Plot

_NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=(?:µs|ms|s|min|h|[kMGTP])\b)")


def document(title: str, *body: str) -> str:
    """A complete page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"{''.join(body)}</main>\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Text as markup, with every number kept on the line of its unit."""
    return _NUMBER_AND_UNIT.sub("\u00a0", escape_markup(text))


def section(title: str, *parts: str, anchor: str = "") -> str:
    """A headed part of the page; `anchor` is what a contents list refers to."""
    name = f' id="{escape_markup(anchor)}"' if anchor else ""
    return f"<section{name}>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def listed(entries: Sequence[str]) -> str:
    """A list of plain sentences; nothing where there are none."""
    return f"<ul>{''.join(f'<li>{escape(entry)}</li>' for entry in entries)}</ul>\n" if entries else ""


def columns(parts: Iterable[str], *, narrow: bool = False) -> str:
    """Parts side by side where there is room, below each other elsewhere."""
    return (
        f'<div class="columns{" narrow" if narrow else ""}">{"".join(f"<div>{part}</div>" for part in parts)}</div>\n'
    )


def tiles(entries: Iterable[Tile]) -> str:
    """Headline numbers."""
    return f'<dl class="tiles">{"".join(map(_tile, entries))}</dl>\n'


def figure(plot: Plot) -> str:
    """A plot under its title, with its note below."""
    svg = plot.svg.replace("<svg ", f'<svg aria-label="{escape(plot.title)}" ', 1)
    return (
        f'<figure><figcaption>{escape(plot.title)}</figcaption>{svg}<p class="note">{escape(plot.note)}</p></figure>\n'
    )


def table(contents: Table, *, swatches: Sequence[str] = (), bare: bool = False) -> str:
    """A table that scrolls within itself where the page is narrow; `swatches` are colours, one a row."""
    header = (
        "" if bare else f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in contents.header)}</tr></thead>"
    )
    rows = []
    for number, (name, *cells) in enumerate(contents.rows):
        swatch = f'<i class="swatch" style="background:var(--{swatches[number]})"></i>' if swatches else ""
        rows.append(f"<tr><th>{swatch}{escape(name)}</th>{''.join(map(_cell, contents.header[1:], cells))}</tr>")
    kind = ' class="prose"' if contents.prose else ""
    return f'<div class="scroll"><table{kind}>{header}<tbody>{"".join(rows)}</tbody></table></div>\n'


def folded(summary: str, text: str) -> str:
    """Text as it is, behind a line that unfolds it."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape_markup(text)}</pre></details>\n"


def _cell(column: str, text: str) -> str:
    """A cell that knows its column, for where a narrow page leaves the header out."""
    label = f' data-column="{escape_markup(column)}"' if column else ""
    return f"<td{label}>{escape(text)}</td>"


def _tile(tile: Tile) -> str:
    number = f"<b>{escape(tile.value)}</b><span>{escape(tile.detail)}</span>"
    return f"<div><dt>{escape(tile.label)}</dt><dd>{number}</dd></div>"
