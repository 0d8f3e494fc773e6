"""Compares ways to use sixteen H100 on one trace, and routers on another; writes docs/fleet.md.

    python experiments/fleet.py
    python experiments/fleet.py --requests=500 --out=/tmp/fleet.md

Llama-3.1-70B, simulated in calibrated mode, under the first requests of the published Azure conversation trace at
several rates: replicas that do everything, and pools that prefill and decode apart. Then Llama-3.1-8B on four single
H100 with prefix caches, under the published Mooncake conversation trace, with every router.

Takes a few minutes. Exit code 0: the page is written. 2: something the user can mend.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.fleet_page import INTRODUCTION, LINKS, RATES, ROUTING, VERDICT
from nanoserve.report.markdown import table

if TYPE_CHECKING:
    from nanoserve.experiment import Experiment
    from nanoserve.replay import Records, Replay
    from nanoserve.report.metrics import Summary
    from nanoserve.roofline.rates import Rates

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "fleet.md"
TRACES = REPOSITORY.parent / "shared" / "traces"
TRACE, PREFIX_TRACE = TRACES / "AzureLLMInferenceTrace_conv_2023.csv", TRACES / "mooncake_conversation_trace.jsonl"
MODEL, ROUTED_MODEL, CHIP = "llama-3.1-70b", "llama-3.1-8b", "h100_sxm"
SLOS = ("llama2-70b", "llama2-70b-interactive")
TIME_SCALES = (0.5, 0.2, 0.16, 0.12)
LINK_SCALE = 0.2
OVERLAPS: tuple[Literal["none", "layers"], ...] = ("none", "layers")
ROUTERS = ("round_robin", "least_loaded", "session_affinity", "prefix_affinity", "least_work")
CACHES: tuple[Literal["off", "lru"], ...] = ("off", "lru")
ROUTED_REPLICAS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A way to use the chips.

    Attributes:
      tensor: chips of a replica. replicas: those that take requests. decode: decode replicas; 0 where each does both.
      chunk_tokens: most prompt tokens in a step; None for as many as fit.
    """

    tensor: int
    replicas: int
    decode: int = 0
    chunk_tokens: int | None = None

    @property
    def name(self) -> str:
        """In words."""
        if not self.decode:
            chunks = f", chunks of {self.chunk_tokens}" if self.chunk_tokens else ""
            return f"{self.replicas} x {self.tensor}, together{chunks}"
        return f"{self.replicas} x {self.tensor} prefill, {self.decode} x {self.tensor} decode"


LAYOUTS = (
    Layout(tensor=8, replicas=2),
    Layout(tensor=8, replicas=1, decode=1),
    Layout(tensor=4, replicas=4),
    Layout(tensor=4, replicas=4, chunk_tokens=512),
    Layout(tensor=4, replicas=2, decode=2),
    Layout(tensor=4, replicas=3, decode=1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run: its summary under each objective, and its records."""

    replay: "Replay"
    records: "Records"
    summaries: Mapping[str, "Summary"]

    @property
    def summary(self) -> "Summary":
        """Under the first objective; the others differ in goodput alone."""
        return next(iter(self.summaries.values()))


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("trace", str(TRACE), "the request log", flag_values=own)
    flags.DEFINE_string("prefix_trace", str(PREFIX_TRACE), "a log with prefix hashes, for routers", flag_values=own)
    flags.DEFINE_integer("requests", 4000, "how many requests of each log to send", lower_bound=1, flag_values=own)
    flags.DEFINE_string("out", str(PAGE), "the page to write", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    parts = [INTRODUCTION.strip().replace("REQUESTS", f"{asked.requests:,}")]
    for time_scale in TIME_SCALES:
        parts.append(_layouts_part(asked.trace, asked.requests, time_scale))
    parts += [
        VERDICT.strip(),
        f"{RATES.strip()}\n\n{_rates_table(asked.trace, asked.requests)}",
        f"{LINKS.strip()}\n\n{_links_table(asked.trace, asked.requests)}",
        f"{ROUTING.strip()}\n\n{_routers_table(asked.prefix_trace, asked.requests)}",
    ]
    command.write_text("--out", Path(asked.out), "\n\n".join(parts) + "\n")
    print(f"written to {asked.out}")
    return 0


# ---- runs ----


def experiment_of(
    layout: Layout, trace: str, requests: int, time_scale: float, overlap: Literal["none", "layers"] = "none"
) -> "Experiment":
    """A layout under the first requests of a trace."""
    from nanoserve.engine.config import EngineConfig
    from nanoserve.experiment import Cluster, Disaggregation, Experiment
    from nanoserve.trace.source import TraceSource

    decode_mesh = {"tensor": layout.tensor, "data": layout.decode} if layout.decode else None
    return Experiment(
        model=MODEL,
        executor="roofline",
        cluster=Cluster(chip=CHIP, mesh={"tensor": layout.tensor, "data": layout.replicas}),
        engine=EngineConfig(prefill_chunk_tokens=layout.chunk_tokens),
        disaggregation=Disaggregation(decode_mesh=decode_mesh, overlap=overlap),
        trace=TraceSource(path=trace, limit=requests, time_scale=time_scale),
    )


def outcome_of(experiment: "Experiment") -> Outcome:
    """Runs an experiment, and judges it by every objective."""
    from nanoserve.replay import prepare
    from nanoserve.report.metrics import summarize
    from nanoserve.report.slo import resolve_slo

    replay = prepare(experiment)
    replay.run()
    records = replay.records()
    sums = functools.partial(
        summarize,
        records.steps,
        records.requests,
        issued=replay.issued,
        page_tokens=experiment.engine.page_tokens,
        engines=len(replay.members),
    )
    return Outcome(
        replay=replay, records=records, summaries={name: sums(resolve_slo(name, None, None)) for name in SLOS}
    )


def rates_of(replay: "Replay", tpot_s: float | None) -> "Rates":
    """What a replica of each pool can do with the trace of a disaggregated replay."""
    from nanoserve.roofline.rates import Rates, decode_rps, prefill_rps
    from nanoserve.roofline.table_pricing import pricer_for

    prefill, decode = replay.pools
    first, second = (
        pricer_for(pool.model, pool.cluster, pool.precision, pool.calibration, ticks_per_s=1 << 60)
        for pool in (prefill, decode)
    )
    prompts, outputs = replay.trace.prompt_tokens, replay.trace.output_tokens
    rps, seqs = decode_rps(
        second,
        prompts,
        outputs,
        most_seqs=decode.config.max_seqs,
        kv_tokens=decode.pages * decode.config.page_tokens,
        tpot_s=tpot_s,
    )
    prefilled = prefill_rps(first, prompts, step_tokens=prefill.config.max_step_tokens)
    return Rates(prefill_rps=prefilled, decode_rps=rps, decode_seqs=seqs)


# ---- tables ----


def _layouts_part(trace: str, requests: int, time_scale: float) -> str:
    rows, goodputs, sent_rps = [], {}, 0.0
    for layout in LAYOUTS:
        outcome = outcome_of(experiment_of(layout, trace, requests, time_scale))
        rows.append([layout.name, *_latencies(outcome.summary), *_goodputs(outcome), _busy(outcome)])
        print("  ".join(rows[-1]), flush=True)
        goodputs[layout.name] = [summary.goodput_rps for summary in outcome.summaries.values()]
        sent_rps = _sent_rps(outcome)
    names = ["", "requests/s", "TTFT p50, p95 (s)", "TPOT p50, p95 (ms)", "ITL p99 (ms)"]
    names += ["goodput", "goodput, interactive", "busy"]
    best = [max(goodputs, key=lambda name, place=place: goodputs[name][place]) for place in range(len(SLOS))]
    verdict = f"Most goodput: {best[0]}; interactive: {best[1]}."
    return f"### {sent_rps:.1f} requests a second are sent\n\n{table(names, rows)}\n\n{verdict}"


def _rates_table(trace: str, requests: int) -> str:
    from nanoserve.replay import prepare

    rows = []
    for tensor, replicas in ((8, 2), (4, 4)):
        layout = Layout(tensor=tensor, replicas=1, decode=1)
        replay = prepare(experiment_of(layout, trace, requests, 1.0))
        for tpot_s in (0.2, 0.04, 0.02):
            rates = rates_of(replay, tpot_s)
            best = rates.best_split(replicas)
            row = [f"{tensor}, {tpot_s * 1e3:.0f} ms", f"{rates.prefill_rps:.1f}", f"{rates.decode_rps:.1f}"]
            row += [f"{rates.decode_seqs}", f"{rates.prefill_per_decode:.2f}", f"{best} + {replicas - best}"]
            rows.append([*row, f"{rates.capacity_rps(best, replicas - best):.1f}"])
    names = ["chips a replica, TPOT limit", "prefill (1/s)", "decode (1/s)", "sequences", "prefill per decode"]
    return table([*names, "advised", "lets through (1/s)"], rows)


def _links_table(trace: str, requests: int) -> str:
    from nanoserve.report.stats import distribution

    rows = []
    for layout in (each for each in LAYOUTS if each.decode):
        for overlap in OVERLAPS:
            outcome = outcome_of(experiment_of(layout, trace, requests, LINK_SCALE, overlap))
            moved = outcome.records.requests.drop_nulls("arrived_s")
            way = distribution((moved["arrived_s"] - moved["handed_over_s"]).to_numpy())
            row = [f"{layout.name}, {overlap}", f"{way.mean * 1e3:.2f}", f"{way.p99 * 1e3:.2f}"]
            rows.append([*row, f"{outcome.summary.tpot_s.p95 * 1e3:.2f}"])
            print("  ".join(rows[-1]), flush=True)
    return table(["", "on the way, mean (ms)", "p99 (ms)", "TPOT p95 (ms)"], rows)


def _routers_table(trace: str, requests: int) -> str:
    rows = []
    for router in ROUTERS:
        for cache in CACHES:
            if cache == "off" and router not in ("round_robin", "least_loaded"):
                continue
            outcome = outcome_of(_routed(trace, requests, router, cache))
            summary = outcome.summary
            shares = _shares(outcome)
            row = [f"`{router}`, cache {cache}", f"{summary.prefix_hit_share:.1%}" if cache != "off" else ""]
            row += [f"{summary.ttft_s.p50:.2f}, {summary.ttft_s.p95:.2f}"]
            row += [f"{summary.tpot_s.p50 * 1e3:.0f}, {summary.tpot_s.p95 * 1e3:.0f}"]
            rows.append([*row, f"{min(shares):.0%} to {max(shares):.0%}"])
            print("  ".join(rows[-1]), flush=True)
    names = ["", "of tokens served from caches", "TTFT p50, p95 (s)", "TPOT p50, p95 (ms)"]
    return table([*names, "a replica's share of requests"], rows)


def _routed(trace: str, requests: int, router: str, cache: Literal["off", "lru"]) -> "Experiment":
    from nanoserve.engine.config import EngineConfig
    from nanoserve.experiment import Cluster, Experiment, FleetConfig
    from nanoserve.trace.source import TraceSource

    return Experiment(
        model=ROUTED_MODEL,
        executor="roofline",
        cluster=Cluster(chip=CHIP, mesh={"data": ROUTED_REPLICAS}),
        engine=EngineConfig(prefix_cache=cache, max_step_tokens=8192),
        fleet=FleetConfig(router=router),
        trace=TraceSource(path=trace, limit=requests),
    )


# ---- cells ----


def _latencies(summary: "Summary") -> list[str]:
    return [
        f"{summary.requests_per_s:.2f}",
        f"{summary.ttft_s.p50:.2f}, {summary.ttft_s.p95:.2f}",
        f"{summary.tpot_s.p50 * 1e3:.0f}, {summary.tpot_s.p95 * 1e3:.0f}",
        f"{summary.itl_s.p99 * 1e3:.0f}",
    ]


def _goodputs(outcome: Outcome) -> list[str]:
    return [f"{summary.goodput_rps:.2f}" for summary in outcome.summaries.values()]


def _busy(outcome: Outcome) -> str:
    """How busy the engines of each pool are."""
    from nanoserve.report.fleet import PoolShare, engine_loads

    pools = [PoolShare(name=pool.name, cluster=pool.cluster) for pool in outcome.replay.pools]
    loads = engine_loads(outcome.records.steps, pools, outcome.summary.duration_s)
    shares = [[load.busy_fraction for load in loads if load.pool == pool.name] for pool in pools]
    return ", ".join(f"{sum(share) / len(share):.0%}" for share in shares)


def _shares(outcome: Outcome) -> list[float]:
    """Each replica's share of the requests."""
    replicas = outcome.records.requests["replica"].to_numpy()
    return [float((replicas == number).mean()) for number in range(len(outcome.replay.members))]


def _sent_rps(outcome: Outcome) -> float:
    arrivals: Any = outcome.records.requests["arrival_s"]
    return len(arrivals) / (arrivals.max() - arrivals.min())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
