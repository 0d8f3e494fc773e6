"""The report as one HTML page: no script, no file beside it, readable on a phone, in print and in the dark.

`render_html` sets what `content` says and `plots` draws. Next: `elements`, which it is set from.
"""

from collections.abc import Mapping, Sequence

from nanoserve.report import units
from nanoserve.report.content import (
    BOUND_LABELS,
    KindShare,
    ReportData,
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
from nanoserve.report.elements import columns, document, escape, figure, folded, paragraph, section, table, tiles
from nanoserve.report.plots import latency_plots, roofline_plot, timeline_plots
from nanoserve.report.profile import TITLE, kernel_table, profile_intro, profile_plot, profile_table
from nanoserve.report.theme import BOUND_COLORS
from nanoserve.roofline.profiled import Profile


def render_html(data: ReportData) -> str:
    """Renders the whole report.

    Args:
      data: the run.

    Returns:
      A complete HTML document; its size does not grow with the run, but for the configuration and the constants.
    """
    summary, shares = data.summary, by_kind(data.steps)
    sections = (
        section("What bounds it", columns([figure(roofline_plot(data)), _time_by_bound(data, shares)])),
        *([_profiled(data.profile)] if data.profile else []),
        section(
            "Latency", _latency_text(data), table(latency_table(summary)), columns(map(figure, latency_plots(data)))
        ),
        section("Over time", columns(map(figure, timeline_plots(data)))),
        section("Throughput, memory, requests", _tables_of(data)),
        *([section("Replicas", *map(table, data.fleet))] if data.fleet else []),
        section("Padding", _padding_text(data), table(padding_table(shares, summary))),
        section("Where the numbers come from", table(constants_table(data.constants))),
        section("What the words mean", _definitions()),
        section("Made with", table(environment_table(data.environment), bare=True), _config(data.operative)),
    )
    return document(f"{data.title}: nanoserve report", _header(data), *sections)


# ---- the parts of the page ----


def _header(data: ReportData) -> str:
    summary, roof = data.summary, data.roof
    machine = f"{roof.chips} × {roof.chip}"
    scope = (
        f"{summary.issued:,} requests on {machine} over {units.time(summary.duration_s)}. Latencies count from the "
        f"{summary.t0}."
    )
    objective = objective_line(summary)
    return (
        f'<header>\n<p class="kind">nanoserve report</p>\n<h1>{escape(data.title)}</h1>\n'
        f'<p class="how">{escape(data.how)}</p>\n<p>{escape(scope)}</p>\n'
        + (f"<p>{escape(objective)}</p>\n" if objective else "")
        + f"</header>\n{tiles(headline(summary))}"
    )


def _time_by_bound(data: ReportData, shares: Sequence[KindShare]) -> str:
    summary = data.summary
    total_s = summary.busy_s + summary.idle_s
    largest = units.share(units.ratio(summary.time_by_bound_s.get(summary.bound, 0.0), total_s))
    bars = [_bar("all time", summary.time_by_bound_s)] + [_bar(share.kind, share.time_s) for share in shares]
    swatches = [BOUND_COLORS[name] for name in summary.time_by_bound_s]
    return (
        f"<figure><figcaption>{largest} of all time goes to {escape(BOUND_LABELS.get(summary.bound, summary.bound))}"
        f"</figcaption>\n{''.join(bars)}{table(bound_table(summary), swatches=swatches)}"
        f'<p class="note">{summary.plans:,} plans, {summary.steps:,} device steps. '
        "Each bar is 100% of its own time.</p></figure>\n"
    )


def _profiled(profile: Profile) -> str:
    parts = [paragraph(text) for text in profile_intro(profile)]
    for kind in profile.kinds:
        parts += [columns([figure(profile_plot(kind))]), table(profile_table(kind)), table(kernel_table(kind))]
    return section(TITLE, *parts)


def _latency_text(data: ReportData) -> str:
    summary = data.summary
    return paragraph(
        f"{summary.completed:,} completed requests; t0 is the {summary.t0}. ITL pools every gap between two tokens; "
        "a gap across a preemption is a stall."
    )


def _tables_of(data: ReportData) -> str:
    summary = data.summary
    return columns((table(make(summary)) for make in (throughput_table, memory_table, finish_table)), narrow=True)


def _padding_text(data: ReportData) -> str:
    summary = data.summary
    tokens = units.share(units.ratio(summary.executed_tokens - summary.useful_tokens, summary.executed_tokens))
    kv = units.share(units.ratio(summary.executed_kv_tokens - summary.useful_kv_tokens, summary.executed_kv_tokens))
    return paragraph(
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
    return folded("The configuration, every value spelled out", operative)


def _bar(label: str, time_s: Mapping[str, float]) -> str:
    total_s = sum(time_s.values())
    parts = "".join(
        f'<i style="width:{seconds / total_s:.3%};background:var(--{BOUND_COLORS[name]})" '
        f'title="{escape(BOUND_LABELS[name])}: {units.share(seconds / total_s)}"></i>'
        for name, seconds in time_s.items()
        if total_s and seconds
    )
    return f'<div class="bar"><span>{escape(label)}</span><div>{parts}</div></div>'
