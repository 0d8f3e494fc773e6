"""The report as one HTML page: no script, no file beside it, readable on a phone, in print and in the dark.

`render_html` sets what `content` says and `plots` draws. Next: `page_style` for its CSS.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape as escape_markup

from nanoserve.report import units
from nanoserve.report.content import (
    BOUND_LABELS,
    KindShare,
    ReportData,
    Table,
    Tile,
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
from nanoserve.report.page_style import CSS
from nanoserve.report.plots import latency_plots, roofline_plot, timeline_plots
from nanoserve.report.theme import BOUND_COLORS, Plot

_NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=(?:µs|ms|s|min|h|[kMGTP])\b)")


def render_html(data: ReportData) -> str:
    """Renders the whole report.

    Args:
      data: the run.

    Returns:
      A complete HTML document; its size does not grow with the run, but for the configuration and the constants.
    """
    summary, shares = data.summary, by_kind(data.steps)
    sections = (
        _section("What bounds it", _columns([_plot(roofline_plot(data)), _time_by_bound(data, shares)])),
        _section(
            "Latency", _latency_text(data), _table(latency_table(summary)), _columns(map(_plot, latency_plots(data)))
        ),
        _section("Over time", _columns(map(_plot, timeline_plots(data)))),
        _section("Throughput, memory, requests", _tables_of(data)),
        *([_section("Replicas", *map(_table, data.fleet))] if data.fleet else []),
        _section("Padding", _padding_text(data), _table(padding_table(shares, summary))),
        _section("Where the numbers come from", _table(constants_table(data.constants))),
        _section("What the words mean", _definitions()),
        _section("Made with", _table(environment_table(data.environment), bare=True), _config(data.operative)),
    )
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(data.title)}: nanoserve report</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
    )
    return head + _header(data) + "".join(sections) + "</main>\n</body>\n</html>\n"


# ---- the parts of the page ----


def _header(data: ReportData) -> str:
    summary, roof = data.summary, data.roof
    machine = f"{roof.chips} × {roof.chip}"
    scope = (
        f"{summary.issued:,} requests on {machine} over {units.time(summary.duration_s)}. Latencies count from the "
        f"{summary.t0}."
    )
    objective = objective_line(summary)
    tiles = "".join(map(_tile, headline(summary)))
    return (
        f'<header>\n<p class="kind">nanoserve report</p>\n<h1>{escape(data.title)}</h1>\n'
        f'<p class="how">{escape(data.how)}</p>\n<p>{escape(scope)}</p>\n'
        + (f"<p>{escape(objective)}</p>\n" if objective else "")
        + f'</header>\n<dl class="tiles">{tiles}</dl>\n'
    )


def _time_by_bound(data: ReportData, shares: Sequence[KindShare]) -> str:
    summary = data.summary
    total_s = summary.busy_s + summary.idle_s
    largest = units.share(units.ratio(summary.time_by_bound_s.get(summary.bound, 0.0), total_s))
    bars = [_bar("all time", summary.time_by_bound_s)] + [_bar(share.kind, share.time_s) for share in shares]
    swatches = [BOUND_COLORS[name] for name in summary.time_by_bound_s]
    return (
        f"<figure><figcaption>{largest} of all time goes to {escape(BOUND_LABELS.get(summary.bound, summary.bound))}"
        f"</figcaption>\n{''.join(bars)}{_table(bound_table(summary), swatches=swatches)}"
        f'<p class="note">{summary.plans:,} plans, {summary.steps:,} device steps. '
        "Each bar is 100% of its own time.</p></figure>\n"
    )


def _latency_text(data: ReportData) -> str:
    summary = data.summary
    return _paragraph(
        f"{summary.completed:,} completed requests; t0 is the {summary.t0}. ITL pools every gap between two tokens; "
        "a gap across a preemption is a stall."
    )


def _tables_of(data: ReportData) -> str:
    summary = data.summary
    return _columns((_table(make(summary)) for make in (throughput_table, memory_table, finish_table)), narrow=True)


def _padding_text(data: ReportData) -> str:
    summary = data.summary
    tokens = units.share(units.ratio(summary.executed_tokens - summary.useful_tokens, summary.executed_tokens))
    kv = units.share(units.ratio(summary.executed_kv_tokens - summary.useful_kv_tokens, summary.executed_kv_tokens))
    return _paragraph(
        f"{tokens} of the tokens that went through the layers and {kv} of the KV positions that attention "
        "gathered were padding."
    )


def _definitions() -> str:
    return (
        "<dl class=words>"
        + "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in DEFINITIONS)
        + "</dl>\n"
    )


def _config(operative: str) -> str:
    heading = "<summary>The configuration, every value spelled out</summary>"
    return f"<details>{heading}<pre>{escape_markup(operative)}</pre></details>\n"


# ---- small parts ----


def escape(text: str) -> str:
    """Text as markup, with every number kept on the line of its unit."""
    return _NUMBER_AND_UNIT.sub("\u00a0", escape_markup(text))


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def _columns(parts: Iterable[str], *, narrow: bool = False) -> str:
    return (
        f'<div class="columns{" narrow" if narrow else ""}">{"".join(f"<div>{part}</div>" for part in parts)}</div>\n'
    )


def _tile(tile: Tile) -> str:
    number = f"<b>{escape(tile.value)}</b><span>{escape(tile.detail)}</span>"
    return f"<div><dt>{escape(tile.label)}</dt><dd>{number}</dd></div>"


def _plot(plot: Plot) -> str:
    svg = plot.svg.replace("<svg ", f'<svg aria-label="{escape(plot.title)}" ', 1)
    return (
        f'<figure><figcaption>{escape(plot.title)}</figcaption>{svg}<p class="note">{escape(plot.note)}</p></figure>\n'
    )


def _bar(label: str, time_s: Mapping[str, float]) -> str:
    total_s = sum(time_s.values())
    parts = "".join(
        f'<i style="width:{seconds / total_s:.3%};background:var(--{BOUND_COLORS[name]})" '
        f'title="{escape(BOUND_LABELS[name])}: {units.share(seconds / total_s)}"></i>'
        for name, seconds in time_s.items()
        if total_s and seconds
    )
    return f'<div class="bar"><span>{escape(label)}</span><div>{parts}</div></div>'


def _table(table: Table, *, swatches: Sequence[str] = (), bare: bool = False) -> str:
    header = "" if bare else f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in table.header)}</tr></thead>"
    rows = []
    for number, (name, *cells) in enumerate(table.rows):
        swatch = f'<i class="swatch" style="background:var(--{swatches[number]})"></i>' if swatches else ""
        rows.append(f"<tr><th>{swatch}{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    kind = ' class="prose"' if table.prose else ""
    return f'<div class="scroll"><table{kind}>{header}<tbody>{"".join(rows)}</tbody></table></div>\n'
