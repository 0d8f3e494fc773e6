"""The plots of a report. Each one's title states what it shows of this run, and its note how many rows are behind it.

However long the run, a plot is a few hundred shapes: plans are gathered into cells or stretches first (`series`), and
distributions are drawn from their percentiles. Next: `theme` for the looks, `html` for the page.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nanoserve.report import units
from nanoserve.report.axes import one_two_five, percent, time_axis
from nanoserve.report.content import KINDS, LATENCY_LABELS, ReportData, Roof
from nanoserve.report.metrics import Summary, engine_rows, plan_columns, pooled_gaps, request_columns
from nanoserve.report.series import Cells, gather, overlay, peak_over_time, rate_over_time
from nanoserve.report.stats import quantiles
from nanoserve.report.theme import DAY, KIND_COLORS, Plot, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns = Mapping[str, np.ndarray]

_STRETCHES = 120  # of the time axis: about three points of the drawing each
_LARGEST_BUBBLE, _SMALLEST_BUBBLE = 300.0, 8.0  # square points
_CURVE = np.concatenate([np.linspace(0, 0.98, 99), np.linspace(0.982, 1, 46)])
_LOG_BEYOND = 30.0  # p99/p1 above which a latency axis is logarithmic


# ---- the roofline ----


def roofline_plot(data: ReportData) -> Plot:
    """Arithmetic intensity against FLOP/s per chip, under the chip's roof; plans gathered into bubbles by kind."""
    roof = data.roof
    plans = _priced_plans(data, roof)
    total_s = plans["duration_s"].sum()
    ridge = roof.peak_flops_per_s / roof.hbm_bytes_per_s
    left = units.ratio(plans["duration_s"][plans["intensity"] < ridge].sum(), total_s)
    title = (
        f"{units.share(left)} of busy time is spent where HBM bandwidth is the roof; "
        f"the run takes {units.significant(units.ratio(1, data.summary.roofline_fraction))} times the datasheet limit"
    )
    note = (
        f"{len(plans['intensity']):,} plans gathered into bubbles, area by time. Intensity: FLOPs of useful tokens "
        "over bytes moved through HBM. Cross: the whole run."
    )

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.set(xscale="log", yscale="log", xlabel="FLOPs per HBM byte", ylabel="FLOP/s per chip")
        _draw_roof(axes, roof, plans)
        cells_by_kind = _cells_by_kind(plans)
        longest_s = max((cells.time_s.max() for cells in cells_by_kind.values()), default=1.0)
        for kind, cells in cells_by_kind.items():
            area = np.maximum(_LARGEST_BUBBLE * cells.time_s / longest_s, _SMALLEST_BUBBLE)
            axes.scatter(cells.x, cells.y, s=area, color=DAY[KIND_COLORS[kind]], alpha=0.6, linewidths=0)
            axes.plot([], [], "o", color=DAY[KIND_COLORS[kind]], label=kind)
        if total_s:
            run = (plans["flops"].sum() / plans["bytes"].sum(), plans["flops"].sum() / plans["chip_s"].sum())
            axes.plot(*run, "x", color=DAY["ink"], markersize=9, markeredgewidth=2)
        if cells_by_kind:
            axes.legend(loc="upper left", handletextpad=0.2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: units.tick(value))

    return draw(title, note, paint, height=1.25)


def _cells_by_kind(plans: Columns) -> dict[str, Cells]:
    cells = {}
    for kind in KINDS:
        rows = plans["kind"] == kind
        if rows.any():
            cells[kind] = gather(plans["intensity"][rows], plans["achieved"][rows], plans["duration_s"][rows])
    return cells


def _priced_plans(data: ReportData, roof: Roof) -> Columns:
    plans = plan_columns(data.steps)
    flops = plans["matmul_flops"] + plans["attention_flops"]
    moved = plans["weight_bytes"] + plans["kv_read_bytes"] + plans["kv_write_bytes"] + plans["activation_bytes"]
    drawn = (flops > 0) & (moved > 0) & (plans["duration_s"] > 0)
    kept = {name: plans[name][drawn] for name in ("kind", "duration_s")} | {
        "flops": flops[drawn],
        "bytes": moved[drawn],
    }
    kept["chip_s"] = (plans["duration_s"] * plans.get("chips", roof.chips))[drawn]
    return kept | {"intensity": kept["flops"] / kept["bytes"], "achieved": kept["flops"] / kept["chip_s"]}


def _draw_roof(axes: "Axes", roof: Roof, plans: Columns) -> None:
    ridge = roof.peak_flops_per_s / roof.hbm_bytes_per_s
    low = min(plans["intensity"].min(initial=ridge), ridge / 10) / 2
    high = max(plans["intensity"].max(initial=ridge), ridge * 5) * 2
    floor = min(plans["achieved"].min(initial=roof.peak_flops_per_s), low * roof.hbm_bytes_per_s) / 2
    axes.set(xlim=(low, high), ylim=(floor, roof.peak_flops_per_s * 3))
    axes.plot(
        [low, ridge, high], [low * roof.hbm_bytes_per_s, *[roof.peak_flops_per_s] * 2], color=DAY["ink"], linewidth=1.2
    )
    axes.plot([ridge] * 2, [floor, roof.peak_flops_per_s], color=DAY["muted"], linewidth=0.8, linestyle=(0, (2, 3)))
    label = f"{units.short(roof.peak_flops_per_s)}FLOP/s {roof.dtype}, {units.short(roof.hbm_bytes_per_s)}B/s"
    axes.annotate(label, (high, roof.peak_flops_per_s), (-2, 5), textcoords="offset points", ha="right", fontsize=9.5)
    axes.annotate(
        f"ridge {units.significant(ridge)}",
        (ridge, floor),
        (3, 4),
        textcoords="offset points",
        fontsize=9,
        color=DAY["muted"],
    )


# ---- latency ----


def latency_plots(data: ReportData) -> list[Plot]:
    """Cumulative distributions of TTFT, TPOT, ITL and E2E, with the limits where there are any."""
    requests = request_columns(data.requests)
    gaps_s, seqs = pooled_gaps(plan_columns(data.steps))
    samples = {name: (requests[name], None) for name in ("ttft_s", "tpot_s", "e2e_s")} | {"itl_s": (gaps_s, seqs)}
    slo = data.summary.slo
    limits = {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s} if slo else {}
    order = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
    return [
        _distribution_plot(name, *samples[name], data.summary, limits.get(name))
        for name in order
        if getattr(data.summary, name).count
    ]


def _distribution_plot(
    name: str, values: np.ndarray, weights: np.ndarray | None, summary: Summary, limit_s: float | None
) -> Plot:
    sample, label = getattr(summary, name), LATENCY_LABELS[name]
    what = "gaps between tokens" if name == "itl_s" else "completed requests"
    title = f"{label}: half within {units.time(sample.p50)}, 99% within {units.time(sample.p99)}"
    if limit_s is not None:
        title += f", {'inside' if sample.p99 <= limit_s else 'beyond'} the limit of {units.time(limit_s)}"
    curve_s = quantiles(values, _CURVE, weights)
    size_s, unit = units.time_unit(sample.p50)
    logarithmic = curve_s[1] > 0 and sample.p99 / curve_s[1] > _LOG_BEYOND
    # A limit far to the right would squeeze the curve against the axis; it is then written and not drawn.
    drawn = limit_s if limit_s is not None and limit_s <= 4 * sample.max else None

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.set(xlabel=f"{label} ({unit})", ylabel=f"share of {what}", ylim=(0, 1.02))
        axes.set_xscale("log" if logarithmic else "linear")
        axes.plot(curve_s / size_s, _CURVE, color=DAY["blue"])
        axes.plot(
            np.array([sample.p50, sample.p95, sample.p99]) / size_s, (0.5, 0.95, 0.99), "o", color=DAY["blue"], ms=4.5
        )
        for share, mark_s in ((0.5, sample.p50), (0.99, sample.p99)):
            text, place = f"p{share * 100:.0f}  {units.time(mark_s)}", (mark_s / size_s, share)
            halo = {"facecolor": DAY["paper"], "edgecolor": "none", "pad": 1}
            axes.annotate(text, place, (7, -10), textcoords="offset points", fontsize=9, bbox=halo)
        if drawn is not None:
            axes.axvline(drawn / size_s, color=DAY["red"], linewidth=1.1, linestyle=(0, (4, 3)))
            axes.annotate(
                "limit", (drawn / size_s, 0.03), (-4, 0), textcoords="offset points", ha="right", color=DAY["red"]
            )
        percent(axes)
        if logarithmic:
            one_two_five(axes)
        else:
            axes.set_xlim(left=0)

    return draw(title, f"{sample.count:,} {what}; dots at p50, p95 and p99.", paint)


# ---- over time ----


def timeline_plots(data: ReportData) -> list[Plot]:
    """Throughput, queue, pages and utilisation over the run."""
    plans = plan_columns(data.steps)
    if not len(plans["start_s"]):
        return []
    edges_s = np.linspace(plans["start_s"].min(), (plans["start_s"] + plans["duration_s"]).max(), _STRETCHES + 1)
    return [
        _throughput_plot(plans, edges_s, data.summary),
        _queue_plot(plans, edges_s),
        _pages_plot(plans, edges_s, data.summary),
        _utilization_plot(plans, edges_s, data.summary),
    ]


def _throughput_plot(plans: Columns, edges_s: np.ndarray, summary: Summary) -> Plot:
    output, prompt = _rate(plans, plans["sampled"], edges_s), _rate(plans, plans["prefill_tokens"], edges_s)
    title = (
        f"{units.significant(summary.output_tokens_per_s)} output tokens/s over the run, at best "
        f"{units.significant(output.max())} in a stretch of {units.time(edges_s[1] - edges_s[0])}"
    )

    def paint(figure: "Figure") -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        _area(upper, edges_s, output, "blue")
        _area(lower, edges_s, prompt, "orange")
        upper.set(ylabel="output tokens/s")
        lower.set(ylabel="prompt tokens/s")
        time_axis(lower, edges_s)
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(lambda value, _: units.tick(value))

    return draw(title, _plans_note(plans), paint)


def _queue_plot(plans: Columns, edges_s: np.ndarray) -> Plot:
    running, waiting = _level(plans, "running", edges_s), _level(plans, "waiting", edges_s)
    most_running, most_waiting = _peak(plans, "running", edges_s), _peak(plans, "waiting", edges_s)
    queue = f"the queue grows to {most_waiting.max():,.0f}" if most_waiting.any() else "nothing ever queues"
    title = f"Up to {most_running.max():,.0f} sequences run at once; {queue}"

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _peaks(axes, edges_s, most_running, "blue")
        _peaks(axes, edges_s, most_waiting, "orange")
        _line(axes, edges_s, running, "blue", "running")
        _line(axes, edges_s, waiting, "orange", "waiting")
        axes.set_ylabel("requests")
        time_axis(axes, edges_s)
        axes.legend(loc="upper left", ncols=2)
        axes.set_ylim(0, max(1.0, most_running.max(), most_waiting.max()) * 1.2)

    return draw(title, _plans_note(plans) + " Thin: the highest in each.", paint)


def _pages_plot(plans: Columns, edges_s: np.ndarray, summary: Summary) -> Plot:
    total = sum(int(plans["pages_total"][rows].max()) for rows in engine_rows(plans))
    used = _level(plans, "pages_used", edges_s) / max(total, 1)
    most = _peak(plans, "pages_used", edges_s) / max(total, 1)
    highest = units.share(most.max())
    title = f"KV pages: {highest} of the pool at the peak, {summary.preemptions:,} preemptions"

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _peaks(axes, edges_s, most, "teal")
        _area(axes, edges_s, used, "teal")
        axes.set_ylabel(f"share of {total:,} pages")
        time_axis(axes, edges_s)
        axes.set_ylim(0, 1.02 if most.max() > 0.4 else most.max() * 1.25 or 1.0)
        percent(axes)

    return draw(title, _plans_note(plans) + " Thin: the highest in each.", paint)


def _utilization_plot(plans: Columns, edges_s: np.ndarray, summary: Summary) -> Plot:
    mfu, mbu = _share(plans, "mfu", edges_s), _share(plans, "mbu", edges_s)
    compute, memory = units.share(summary.mfu), units.share(summary.mbu)
    title = f"While busy, {compute} of peak FLOP/s and {memory} of HBM bandwidth are used"

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _line(axes, edges_s, mbu, "blue", "MBU")
        _line(axes, edges_s, mfu, "orange", "MFU")
        axes.set(ylabel="share of the datasheet", ylim=(0, max(mfu.max(), mbu.max(), 0.01) * 1.2))
        axes.legend(loc="upper left", ncols=2)
        time_axis(axes, edges_s)
        percent(axes)

    return draw(title, _plans_note(plans) + " Idle time counts as 0 here.", paint)


# ---- small parts ----


def _rate(plans: Columns, amount: np.ndarray, edges_s: np.ndarray) -> np.ndarray:
    """Of all engines together."""
    return sum(
        (
            rate_over_time(plans["start_s"][rows], plans["duration_s"][rows], amount[rows], edges_s)
            for rows in engine_rows(plans)
        ),
        np.zeros(len(edges_s) - 1),
    )


def _share(plans: Columns, name: str, edges_s: np.ndarray) -> np.ndarray:
    """The mean of a share over all chips."""
    if "chips" not in plans:
        return _level(plans, name, edges_s)
    chips = sum(int(plans["chips"][rows][0]) for rows in engine_rows(plans))
    return _rate(plans, plans[name] * plans["duration_s"] * plans["chips"], edges_s) / chips


def _level(plans: Columns, name: str, edges_s: np.ndarray) -> np.ndarray:
    return _rate(plans, plans[name] * plans["duration_s"], edges_s)


def _peak(plans: Columns, name: str, edges_s: np.ndarray) -> np.ndarray:
    if len(engine_rows(plans)) > 1:
        return peak_over_time(*overlay(plans["start_s"], plans["duration_s"], plans[name]), edges_s)
    return peak_over_time(plans["start_s"], plans["duration_s"], plans[name].astype(np.float64), edges_s)


def _plans_note(plans: Columns) -> str:
    return f"{len(plans['start_s']):,} plans, averaged over {_STRETCHES} equal stretches of time."


def _area(axes: "Axes", edges_s: np.ndarray, values: np.ndarray, color: str) -> None:
    axes.stairs(values, edges_s, fill=True, color=DAY[color], alpha=0.25, linewidth=0)
    axes.stairs(values, edges_s, color=DAY[color], linewidth=1.3, baseline=None)
    axes.set_ylim(bottom=0)


def _line(axes: "Axes", edges_s: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    axes.stairs(values, edges_s, color=DAY[color], linewidth=1.4, baseline=None, label=label)


def _peaks(axes: "Axes", edges_s: np.ndarray, values: np.ndarray, color: str) -> None:
    axes.stairs(values, edges_s, color=DAY[color], linewidth=0.7, alpha=0.55, baseline=None)
