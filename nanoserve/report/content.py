"""What a report says, as plain tables of text; `html`, `markdown` and `terminal` only set it.

A `ReportData` is everything a report needs. Next: `html`, or `plots` for what is drawn.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nanoserve.report import units
from nanoserve.report.metrics import BOUNDS, Summary, useful_kv_tokens, useful_tokens
from nanoserve.report.stats import Distribution

if TYPE_CHECKING:
    import polars as pl

    from nanoserve.roofline.profiled import Profile

KINDS = ("prefill", "mixed", "decode")

BOUND_LABELS: Mapping[str, str] = {
    "compute": "compute",
    "weights": "reading weights",
    "kv": "reading and writing KV",
    "activations": "activations",
    "link": "links between chips",
    "overhead": "launches, host, unexplained",
    "idle": "idle: nothing to do",
}

LATENCY_LABELS: Mapping[str, str] = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2e_s": "E2E",
    "norm_latency_s": "E2E per token",
    "queue_s": "queue",
    "max_stall_s": "stall",
    "schedule_delay_s": "schedule delay",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roof:
    """The limits of the hardware: dense peak and HBM bandwidth of one chip, and how many chips there are."""

    chip: str
    chips: int
    dtype: str
    peak_flops_per_s: float
    hbm_bytes_per_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report is made of.

    Attributes:
      title: name of the configuration. how: one line, "simulated because ..." or "executed on ...".
      summary: see `metrics.summarize`. steps, requests: the tables it was made from.
      roof: the hardware's limits.
      constants: every constant the numbers rest on: name, value, unit, source.
      operative: the configuration with every value spelled out.
      environment: what `env.json` holds.
      fleet: tables of `report.fleet`; none for a single engine.
      profile: where a step's time went; None where nothing was profiled.
    """

    title: str
    how: str
    summary: Summary
    steps: "pl.DataFrame"
    requests: "pl.DataFrame"
    roof: Roof
    constants: Sequence[tuple[str, Any, str, str]]
    operative: str
    environment: Mapping[str, Any]
    fleet: "Sequence[Table]" = ()
    profile: "Profile | None" = None


@dataclasses.dataclass(frozen=True)
class Tile:
    """A headline number: what it is, the number, and what qualifies it."""

    label: str
    value: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text: the first column names the row, the others are numbers unless `prose`."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False


def headline(summary: Summary) -> list[Tile]:
    """The numbers at the top."""
    failed = summary.issued - summary.completed
    tiles = [
        Tile("requests completed", units.count(summary.completed), f"of {summary.issued:,}, {failed:,} not"),
        Tile("output tokens/s", units.significant(summary.output_tokens_per_s), _rates(summary)),
        _latency_tile("TTFT", summary.ttft_s),
        _latency_tile("TPOT", summary.tpot_s),
        Tile("MFU", units.share(summary.mfu), "of peak FLOP/s, while busy"),
        Tile("MBU", units.share(summary.mbu), "of HBM bandwidth, while busy"),
        Tile("roofline fraction", units.share(summary.roofline_fraction), "datasheet time / time taken"),
        _bound_tile(summary),
    ]
    return [*tiles, _objective_tile(summary)] if summary.slo else tiles


def objective_line(summary: Summary) -> str:
    """The limits and whether the run kept them; empty without limits."""
    if not summary.slo:
        return ""
    verdict = "met" if summary.slo_met else "missed"
    return (
        f"SLO {summary.slo.name}: p99 of TTFT ≤ {units.time(summary.slo.ttft_s)} and of TPOT ≤ "
        f"{units.time(summary.slo.tpot_s)}: {verdict}. {units.share(summary.slo_attainment)} of issued requests "
        f"were good ({units.share(summary.slo_attainment_completed)} of completed), "
        f"{units.significant(summary.goodput_rps)} a second."
    )


def latency_table(summary: Summary) -> Table:
    """Every latency: mean, percentiles, maximum."""
    rows = []
    for field, label in LATENCY_LABELS.items():
        sample: Distribution = getattr(summary, field)
        times = (sample.mean, sample.p50, sample.p90, sample.p95, sample.p99, sample.max)
        rows.append((label, *(units.time(value) for value in times), units.count(sample.count)))
    return Table(("latency", "mean", "p50", "p90", "p95", "p99", "max", "sample"), rows)


def throughput_table(summary: Summary) -> Table:
    """What went through, and how fast."""
    rows = [
        ("requests", units.count(summary.completed), units.significant(summary.requests_per_s)),
        ("prompt tokens", units.count(summary.prompt_tokens), units.significant(summary.prompt_tokens_per_s)),
        ("output tokens", units.count(summary.output_tokens), units.significant(summary.output_tokens_per_s)),
        ("device steps", units.count(summary.steps), units.significant(units.ratio(summary.steps, summary.duration_s))),
        ("plans", units.count(summary.plans), units.significant(units.ratio(summary.plans, summary.duration_s))),
        (
            "preemptions",
            units.count(summary.preemptions),
            units.significant(units.ratio(summary.preemptions, summary.duration_s)),
        ),
    ]
    return Table(("throughput", "total", "per second"), rows + _kept_rows(summary) + _draft_rows(summary))


def _kept_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """KV that was found again, of a prefix or of a session, or waited on the host; nothing where there was none."""
    counts = {}
    if summary.swapped_out_tokens:
        counts |= {"swapped to the host": summary.swapped_out_tokens, "swapped back": summary.swapped_in_tokens}
    if summary.prefix_lookup_tokens:
        counts |= {"asked of kept KV": summary.prefix_lookup_tokens, "found there": summary.prefix_hit_tokens}
    rows = [
        (f"tokens {name}", units.count(count), units.significant(units.ratio(count, summary.duration_s)))
        for name, count in counts.items()
    ]
    if summary.prefix_lookup_tokens:
        rows.append(("found in kept KV, of asked", units.share(summary.prefix_hit_share), ""))
    return rows


def _draft_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """What speculation did; nothing where no token was drafted."""
    if not summary.drafted_tokens:
        return []
    counts = {"drafted tokens": summary.drafted_tokens, "accepted tokens": summary.accepted_tokens}
    rows = [
        (name, units.count(count), units.significant(units.ratio(count, summary.duration_s)))
        for name, count in counts.items()
    ]
    return [
        *rows,
        ("accepted, of drafted", units.share(summary.accepted_share), ""),
        ("tokens a sequence gains in a step", units.significant(summary.tokens_per_row), ""),
    ]


def bound_table(summary: Summary) -> Table:
    """Where the time went."""
    total_s = summary.busy_s + summary.idle_s
    rows = [
        (BOUND_LABELS[name], units.time(seconds), units.share(units.ratio(seconds, total_s)))
        for name, seconds in summary.time_by_bound_s.items()
    ]
    return Table(("time goes to", "time", "share"), rows)


def finish_table(summary: Summary) -> Table:
    """Requests by finish reason."""
    rows = [
        (reason.replace("_", " "), units.count(number), units.share(units.ratio(number, summary.issued)))
        for reason, number in summary.finish_reasons.items()
    ]
    return Table(("left by", "requests", "share"), [*rows, ("issued", units.count(summary.issued), "")])


def memory_table(summary: Summary) -> Table:
    """Slots, queue and pages."""
    pages = summary.pages_total
    mean_share, peak_share = (
        units.share(units.ratio(n, pages)) for n in (summary.pages_used_mean, summary.pages_used_peak)
    )
    rows = (
        ("running sequences", units.significant(summary.running_mean), units.count(summary.running_peak)),
        ("waiting requests", units.significant(summary.waiting_mean), units.count(summary.waiting_peak)),
        (f"KV pages, of {pages:,}", units.count(summary.pages_used_mean), units.count(summary.pages_used_peak)),
        ("share of all pages", mean_share, peak_share),
        ("KV utilization", units.share(summary.kv_utilization), ""),
    )
    return Table(("while busy", "mean", "peak"), rows)


@dataclasses.dataclass(frozen=True)
class KindShare:
    """What one kind of plan did: time by bound, and useful against executed work."""

    kind: str
    plans: int
    time_s: Mapping[str, float]
    useful_tokens: int
    executed_tokens: int
    useful_kv_tokens: int
    executed_kv_tokens: int


def by_kind(steps: "pl.DataFrame") -> list[KindShare]:
    """Splits a run by kind of plan, kinds that did not occur left out."""
    shares = []
    for kind, part in ((kind, steps.filter(steps["kind"] == kind)) for kind in KINDS):
        if not len(part):
            continue
        columns = {name: part[name].to_numpy() for name in part.columns}
        shares.append(
            KindShare(
                kind,
                len(part),
                {bound: float(columns[f"{bound}_s"].sum()) for bound in BOUNDS},
                int(useful_tokens(columns).sum()),
                int(columns["executed_tokens"].sum()),
                int(useful_kv_tokens(columns).sum()),
                int(columns["executed_kv_tokens"].sum()),
            )
        )
    return shares


def padding_table(shares: Sequence[KindShare], summary: Summary) -> Table:
    """The padding ledger: what was computed beside what was needed."""
    rows = [
        _ledger_row(s.kind, s.plans, s.useful_tokens, s.executed_tokens, s.useful_kv_tokens, s.executed_kv_tokens)
        for s in shares
    ]
    total = _ledger_row(
        "all",
        summary.plans,
        summary.useful_tokens,
        summary.executed_tokens,
        summary.useful_kv_tokens,
        summary.executed_kv_tokens,
    )
    header = ("plans", "number", "useful tokens", "padding", "share", "useful KV", "KV padding", "share")
    return Table(header, [*rows, total])


def constants_table(constants: Sequence[tuple[str, Any, str, str]]) -> Table:
    """Every constant with its source."""
    rows = [(name, _plain(value), unit, source) for name, value, unit, source in constants]
    return Table(("constant", "value", "unit", "source"), rows, prose=True)


def environment_table(environment: Mapping[str, Any]) -> Table:
    """Where the run was made, nested entries joined with dots."""
    return Table(("", ""), list(_flat(environment)), prose=True)


def _ledger_row(kind: str, plans: int, useful: int, executed: int, useful_kv: int, executed_kv: int) -> tuple[str, ...]:
    padding, kv_padding = executed - useful, executed_kv - useful_kv
    return (
        kind,
        units.count(plans),
        _compact(useful),
        _compact(padding),
        units.share(units.ratio(padding, executed)),
        _compact(useful_kv),
        _compact(kv_padding),
        units.share(units.ratio(kv_padding, executed_kv)),
    )


def _compact(number: int) -> str:
    return units.short(number) if number >= 1e6 else units.count(number)


def _rates(summary: Summary) -> str:
    requests, prompt = units.significant(summary.requests_per_s), units.significant(summary.prompt_tokens_per_s)
    return f"{requests} requests/s, {prompt} prompt tokens/s"


def _latency_tile(label: str, sample: Distribution) -> Tile:
    detail = f"p50 {units.time(sample.p50)}, p95 {units.time(sample.p95)}"
    return Tile(f"{label} p99", units.time(sample.p99), detail)


def _bound_tile(summary: Summary) -> Tile:
    part = units.ratio(summary.time_by_bound_s.get(summary.bound, 0.0), summary.busy_s)
    return Tile(
        "mostly bound by", summary.bound, f"{units.share(part)} of busy time; busy {units.share(summary.busy_fraction)}"
    )


def _objective_tile(summary: Summary) -> Tile:
    detail = f"of issued within {summary.slo.name}" if summary.slo else ""
    return Tile("SLO attainment", units.share(summary.slo_attainment), detail)


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _flat(value: Any, path: str = "") -> Sequence[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for name, entry in value.items() for row in _flat(entry, f"{path}.{name}" if path else str(name))]
    return [(path, "not known" if value is None else str(value) or "none")]
