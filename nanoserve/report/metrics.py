"""What a run achieved: `summarize` turns its two tables into the numbers that everything else prints.

Invariants: every request that was issued is accounted for exactly once, or `summarize` raises; the order of rows does
not matter; a number that has no sample is NaN. t0 of every latency is the *scheduled* arrival (open loop: a late engine
cannot hide its queue), and how late the engine took requests is reported beside it as `schedule_delay_s`.

Latencies, throughput and token counts are over completed requests (finished by length or stop); `slo_attainment` and
`goodput_rps` are over issued ones. Of a fleet, times in plans are summed over its engines, means are over the busy time
of all of them, weighted by chips, and peaks are those of one engine; `fleet` tells engines apart. Next: `gaps` for
inter-token gaps, `stats` for percentiles, `run_folder` for files.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoserve.engine.types import FinishReason
from nanoserve.report.gaps import token_gaps
from nanoserve.report.slo import Slo
from nanoserve.report.stats import Distribution, distribution

if TYPE_CHECKING:
    import polars as pl

T0 = "scheduled arrival"
COMPLETED = (FinishReason.LENGTH.value, FinishReason.STOP.value)
BOUNDS = ("compute", "weights", "kv", "activations", "link", "overhead")  # in the order they are drawn

Columns = Mapping[str, np.ndarray]


class LostRequestError(RuntimeError):
    """Requests went in and did not come out, or came out twice: a defect of the engine, not of its user."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The numbers of one run.

    Attributes:
      t0: the moment from which latencies count.
      issued, completed: requests sent, and those that finished by length or stop. finish_reasons: requests by reason.
      duration_s: first scheduled arrival to last finish.
      requests_per_s, prompt_tokens_per_s, output_tokens_per_s, total_tokens_per_s: of completed requests.
      prompt_tokens, output_tokens: of completed requests.
      ttft_s: arrival to first token. tpot_s: (last - first)/(n - 1), n >= 2. itl_s: gaps between tokens, pooled.
      e2e_s: arrival to last token. norm_latency_s: e2e/n. queue_s: arrival to first admission.
      max_stall_s: longest gap across a preemption, of preempted requests.
      schedule_delay_s: arrival to taken by the engine, of all issued requests.
      slo: the limits, or None; the next four are then NaN. goodput_rps: good requests per second of `duration_s`.
      slo_attainment: good / issued. slo_attainment_completed: good / completed.
      slo_met: p99 of TTFT and of TPOT are within the limits and nothing failed (None without limits).
      busy_s, idle_s: time in plans, and the rest of `duration_s`; of a fleet, of all engines together.
      busy_fraction: busy / (busy + idle).
      mfu, mbu: means over busy time. roofline_fraction: datasheet time / busy time.
      bound: where most busy time went. time_by_bound_s: seconds by bound, with `idle`.
      useful_tokens, executed_tokens: through the layers, without and with padding. useful_kv_tokens,
        executed_kv_tokens: KV positions attended, and gathered.
      steps, plans, preemptions: totals.
      prefix_lookup_tokens, prefix_hit_tokens: tokens to prefill of the sequences that were admitted, and those of them
        whose KV the prefix cache, or their session, had. prefix_hit_share: hits / lookups, NaN where nothing is kept.
      swapped_out_tokens, swapped_in_tokens: KV positions moved to the host, and back.
      drafted_tokens, accepted_tokens: tokens that decode rows verified besides their own, and those of them that were
        kept. accepted_share: accepted / drafted. tokens_per_row: tokens that a decoding sequence gained in a step;
        the last two are NaN where nothing was drafted.
      pages_total, pages_used_peak: of the pool. pages_used_mean, running_mean, waiting_mean: over busy time.
      running_peak, waiting_peak: requests.
      kv_utilization: KV positions written / positions in the pages held, over busy time; NaN if the
        page size is unknown.
    """

    t0: str
    issued: int
    completed: int
    finish_reasons: dict[str, int]
    duration_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    norm_latency_s: Distribution
    queue_s: Distribution
    max_stall_s: Distribution
    schedule_delay_s: Distribution
    slo: Slo | None
    goodput_rps: float
    slo_attainment: float
    slo_attainment_completed: float
    slo_met: bool | None
    busy_s: float
    idle_s: float
    busy_fraction: float
    mfu: float
    mbu: float
    roofline_fraction: float
    bound: str
    time_by_bound_s: dict[str, float]
    useful_tokens: int
    executed_tokens: int
    useful_kv_tokens: int
    executed_kv_tokens: int
    steps: int
    plans: int
    preemptions: int
    prefix_lookup_tokens: int
    prefix_hit_tokens: int
    prefix_hit_share: float
    swapped_out_tokens: int
    swapped_in_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    accepted_share: float
    tokens_per_row: float
    pages_total: int
    pages_used_peak: int
    pages_used_mean: float
    kv_utilization: float
    running_mean: float
    running_peak: int
    waiting_mean: float
    waiting_peak: int

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values: nested dictionaries, and None for what has no sample."""
        return _json_value(dataclasses.asdict(self))


def summarize(
    steps: "pl.DataFrame",
    requests: "pl.DataFrame",
    slo: Slo | None = None,
    *,
    issued: int | None = None,
    page_tokens: int | None = None,
    engines: int = 1,
) -> Summary:
    """Reduces a run to its numbers.

    Args:
      steps: one row a plan, `records.STEP_COLUMNS` and `records.COST_COLUMNS`.
      requests: one row a request that was issued, `records.REQUEST_COLUMNS`.
      slo: limits for goodput and attainment, or None.
      issued: requests the load sent, by its own count; None takes the rows of `requests`.
      page_tokens: tokens per page.
      engines: that ran at the same time; the table of steps says which ran what.

    Returns:
      The summary.

    Raises:
      LostRequestError: issued requests are not exactly those finished, refused, timed out, aborted or without
        memory.
    """
    plans, done = plan_columns(steps), request_columns(requests)
    reasons = check_conservation(done, len(requests) if issued is None else issued)
    duration_s = run_duration_s(done)
    return Summary(
        t0=T0,
        issued=sum(reasons.values()),
        finish_reasons=reasons,
        duration_s=duration_s,
        slo=slo,
        itl_s=distribution(*pooled_gaps(plans)),
        schedule_delay_s=distribution(done["sent_s"] - done["arrival_s"]),
        **_throughput(done, duration_s),
        **_latencies(done),
        **_objectives(done, slo, duration_s),
        **_utilization(plans, engines * duration_s),
        **_totals(plans),
        **_kv_kept(plans),
        **_drafts(plans),
        **_occupancy(plans, page_tokens),
    )


# ---- requests ----


def request_columns(requests: "pl.DataFrame") -> dict[str, np.ndarray]:
    """The request table as arrays in order of the trace, `with_latencies`.

    Args:
      requests: `records.REQUEST_COLUMNS`.
    """
    return with_latencies(_columns(requests, "request"))


def with_latencies(requests: Columns) -> dict[str, np.ndarray]:
    """Requests with the latencies that follow from their times.

    Args:
      requests: `records.REQUEST_COLUMNS` as arrays.

    Returns:
      The columns, float with NaN where a time is missing, and `completed` (bool), `ttft_s`, `tpot_s`, `e2e_s`,
      `norm_latency_s`, `queue_s`: float [N], NaN for requests that did not complete.
    """
    columns = dict(requests)
    for name in ("arrival_s", "sent_s", "admitted_s", "first_token_s", "finish_s", "max_stall_s"):
        columns[name] = columns[name].astype(np.float64)
    arrival_s, first_s, finish_s = (columns[name] for name in ("arrival_s", "first_token_s", "finish_s"))
    tokens = columns["output_tokens"].astype(np.float64)
    completed = np.isin(columns["finish_reason"].astype(str), COMPLETED)
    several = np.where(tokens > 1, tokens - 1, np.nan)
    some = np.where(tokens > 0, tokens, np.nan)
    latencies = {
        "ttft_s": first_s - arrival_s,
        "tpot_s": (finish_s - first_s) / several,
        "e2e_s": finish_s - arrival_s,
        "norm_latency_s": (finish_s - arrival_s) / some,
        "queue_s": columns["admitted_s"] - arrival_s,
    }
    columns |= {name: np.where(completed, values, np.nan) for name, values in latencies.items()}
    return columns | {"completed": completed}


def check_conservation(requests: Columns, issued: int) -> dict[str, int]:
    """Counts requests by finish reason and checks that each was issued once and left once.

    Args:
      requests: the columns `request`, `finish_reason`, `finish_s`.
      issued: how many were sent.

    Returns:
      Reason -> requests, every reason present, in the order of `FinishReason`.

    Raises:
      LostRequestError: with the first request that is missing an end, doubled, or the counts that differ.
    """
    numbers, counts = np.unique(requests["request"], return_counts=True)
    if (counts > 1).any():
        raise LostRequestError(
            f"request {numbers[np.argmax(counts > 1)]} is recorded {counts.max()} times; each leaves once"
        )
    found = Counter(requests["finish_reason"].astype(str).tolist())
    reasons = {reason.value: found.pop(reason.value, 0) for reason in FinishReason}
    if found:
        wrong = next(iter(found))
        row = int(np.argmax(requests["finish_reason"].astype(str) == wrong))
        raise LostRequestError(
            f"request {requests['request'][row]} has finish_reason '{wrong}', so it never left the engine "
            f"({sum(found.values())} such); wanted one of {', '.join(reasons)}"
        )
    if np.isnan(requests["finish_s"]).any():
        row = int(np.argmax(np.isnan(requests["finish_s"])))
        raise LostRequestError(f"request {requests['request'][row]} left the engine without a finish_s")
    if sum(reasons.values()) != issued:
        parts = " + ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise LostRequestError(f"{issued} requests were issued, {sum(reasons.values())} are accounted for: {parts}")
    return reasons


def run_duration_s(requests: Columns) -> float:
    """Seconds from the first scheduled arrival to the last finish; 0 without requests."""
    if not len(requests["arrival_s"]):
        return 0.0
    return float(requests["finish_s"].max() - requests["arrival_s"].min())


def good_requests(requests: Columns, slo: Slo) -> np.ndarray:
    """Which requests met the objective: bool [N]. A request of one token has no TPOT and is judged by its TTFT."""
    paced = np.isnan(requests["tpot_s"]) | (requests["tpot_s"] <= slo.tpot_s)
    return requests["completed"] & (requests["ttft_s"] <= slo.ttft_s) & paced


def _throughput(requests: Columns, duration_s: float) -> dict[str, Any]:
    completed = requests["completed"]
    prompt, output = (int(requests[name][completed].sum()) for name in ("prompt_tokens", "output_tokens"))
    return {
        "completed": int(completed.sum()),
        "prompt_tokens": prompt,
        "output_tokens": output,
        "requests_per_s": _ratio(completed.sum(), duration_s),
        "prompt_tokens_per_s": _ratio(prompt, duration_s),
        "output_tokens_per_s": _ratio(output, duration_s),
        "total_tokens_per_s": _ratio(prompt + output, duration_s),
    }


def _latencies(requests: Columns) -> dict[str, Any]:
    names = ("ttft_s", "tpot_s", "e2e_s", "norm_latency_s", "queue_s")
    stalled = np.where(requests["preemptions"] > 0, requests["max_stall_s"], np.nan)
    return {name: distribution(requests[name]) for name in names} | {"max_stall_s": distribution(stalled)}


def _objectives(requests: Columns, slo: Slo | None, duration_s: float) -> dict[str, Any]:
    if slo is None:
        names = ("goodput_rps", "slo_attainment", "slo_attainment_completed")
        return dict.fromkeys(names, math.nan) | {"slo_met": None}
    good, completed = good_requests(requests, slo).sum(), requests["completed"].sum()
    ttft, tpot = distribution(requests["ttft_s"]), distribution(requests["tpot_s"])
    return {
        "goodput_rps": _ratio(good, duration_s),
        "slo_attainment": _ratio(good, len(requests["completed"])),
        "slo_attainment_completed": _ratio(good, completed),
        "slo_met": bool(
            completed == len(requests["completed"]) > 0
            and ttft.p99 <= slo.ttft_s
            and (tpot.count == 0 or tpot.p99 <= slo.tpot_s)
        ),
    }


# ---- plans ----


def plan_columns(steps: "pl.DataFrame") -> dict[str, np.ndarray]:
    """The step table as arrays in order of time; of a fleet, engine after engine."""
    return _columns(steps, *(["replica"] if "replica" in steps.columns else []), "step")


def engine_rows(plans: Columns) -> list[slice]:
    """Where the plans of each engine are, in what `plan_columns` returned; engines without any left out."""
    if "replica" not in plans:
        return [slice(None)]
    ends = np.flatnonzero(np.diff(plans["replica"])) + 1
    return list(map(slice, [0, *ends], [*ends, len(plans["replica"])]))


def pooled_gaps(plans: Columns) -> tuple[np.ndarray, np.ndarray]:
    """`gaps.token_gaps` of every engine, together."""
    gaps = [token_gaps({name: column[rows] for name, column in plans.items()}) for rows in engine_rows(plans)]
    return np.concatenate([seconds for seconds, _ in gaps]), np.concatenate([seqs for _, seqs in gaps])


def useful_kv_tokens(plans: Columns) -> np.ndarray:
    """KV positions that attention needed, per plan: what `executed_kv_tokens` would be without padding."""
    return plans["decode_kv_tokens"] + plans["prefill_kv_tokens"]


def useful_tokens(plans: Columns) -> np.ndarray:
    """Tokens that had to pass through the layers, per plan: what `executed_tokens` would be without padding."""
    return plans["steps"] * plans["decode_seqs"] + plans["drafted_tokens"] + plans["prefill_tokens"]


def _utilization(plans: Columns, engine_s: float) -> dict[str, Any]:
    busy_s = float(plans["duration_s"].sum())
    idle_s = max(0.0, engine_s - busy_s)
    by_bound = {name: float(plans[f"{name}_s"].sum()) for name in BOUNDS}
    return {
        "busy_s": busy_s,
        "idle_s": idle_s,
        "busy_fraction": _ratio(busy_s, busy_s + idle_s),
        "mfu": _time_mean(plans, "mfu"),
        "mbu": _time_mean(plans, "mbu"),
        "roofline_fraction": _ratio(plans["sol_s"].sum(), busy_s),
        "bound": max(by_bound, key=by_bound.__getitem__) if busy_s else "idle",
        "time_by_bound_s": by_bound | {"idle": idle_s},
    }


def _totals(plans: Columns) -> dict[str, Any]:
    return {
        "useful_tokens": int(useful_tokens(plans).sum()),
        "executed_tokens": int(plans["executed_tokens"].sum()),
        "useful_kv_tokens": int(useful_kv_tokens(plans).sum()),
        "executed_kv_tokens": int(plans["executed_kv_tokens"].sum()),
        "steps": int(plans["steps"].sum()),
        "plans": len(plans["steps"]),
        "preemptions": int(plans["preemptions"].sum()),
    }


def _kv_kept(plans: Columns) -> dict[str, Any]:
    names = ("prefix_lookup_tokens", "prefix_hit_tokens", "swapped_out_tokens", "swapped_in_tokens")
    totals = {name: int(plans[name].sum()) for name in names}
    return totals | {"prefix_hit_share": _ratio(totals["prefix_hit_tokens"], totals["prefix_lookup_tokens"])}


def _drafts(plans: Columns) -> dict[str, Any]:
    drafted, accepted = int(plans["drafted_tokens"].sum()), int(plans["accepted_tokens"].sum())
    rows = int((plans["steps"] * plans["decode_seqs"]).sum())
    return {
        "drafted_tokens": drafted,
        "accepted_tokens": accepted,
        "accepted_share": _ratio(accepted, drafted),
        "tokens_per_row": _ratio(rows + accepted, rows) if drafted else math.nan,
    }


def _occupancy(plans: Columns, page_tokens: int | None) -> dict[str, Any]:
    places = plans["pages_used"] * (page_tokens or 0) * plans["duration_s"]
    return {
        "pages_total": _peak(plans["pages_total"]),
        "pages_used_peak": _peak(plans["pages_used"]),
        "pages_used_mean": _time_mean(plans, "pages_used"),
        "kv_utilization": _ratio((plans["kv_tokens_held"] * plans["duration_s"]).sum(), places.sum()),
        "running_mean": _time_mean(plans, "running"),
        "running_peak": _peak(plans["running"]),
        "waiting_mean": _time_mean(plans, "waiting"),
        "waiting_peak": _peak(plans["waiting"]),
    }


# ---- small parts ----


def _columns(frame: "pl.DataFrame", *order_by: str) -> dict[str, np.ndarray]:
    ordered = frame.sort(order_by)
    return {name: ordered[name].to_numpy() for name in ordered.columns}


def _time_mean(plans: Columns, name: str) -> float:
    weights = plans["duration_s"] * plans["chips"] if "chips" in plans else plans["duration_s"]
    return _ratio((plans[name] * weights).sum(), weights.sum())


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan


def _peak(values: np.ndarray) -> int:
    return int(values.max()) if len(values) else 0


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_value(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
