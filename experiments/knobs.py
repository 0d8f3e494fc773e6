"""Turns the scheduler's knobs one at a time on one trace, and writes docs/scheduling.md.

    python experiments/knobs.py
    python experiments/knobs.py --requests=2000 --out=/tmp/scheduling.md

Llama-2-70B on eight H100, simulated in calibrated mode, under the first requests of the published Azure conversation
trace, sped up until the default is near saturation. Every row is the default with what the row says. The last table
asks for the highest rate at which each kind of batching keeps a limit on the 95th percentile.

Takes a few minutes. Exit code 0: the page is written. 2: something the user can mend.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.report.markdown import table
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from nanoserve.replay import Replay
    from nanoserve.report.metrics import Summary

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "scheduling.md"
TRACE = REPOSITORY.parent / "shared" / "traces" / "AzureLLMInferenceTrace_conv_2023.csv"
MODEL, CHIP, WAYS, SLO = "llama-2-70b", "h100_sxm", 8, "llama2-70b"
NEAR, OVER = 0.3, 0.25  # of the trace's gaps: near saturation, and beyond it
FEW_PAGES = 8000
E2E_LIMIT_S, SEARCH_STEPS, SLOWEST = 40.0, 7, 8.0


FIELDS = (
    ("batching", "`mixed`, `prefill_first`, `static`", "a step holds chunks and decoding; one or the other; batches"),
    ("static_timeout_s", "1", "a static batch starts unfilled when its oldest has waited this long"),
    ("interval_s", "0", "while something runs, arrivals are seen at multiples of this"),
    ("prefill_chunk_tokens", "None", "most prompt tokens in one step"),
    ("chunking", "`fixed`, `adaptive`", "adaptive: `most * p / (p + d / decodes_per_prompt)`"),
    ("decodes_per_prompt", "16", "in that, p prompts wait or are in prefill, and d sequences decode"),
    ("policy", "`fcfs`, `shortest_first`, `priority`, `fair_share`, `deadline`", "who is next"),
    ("victim", "`youngest`, `least_progress`, `lowest_priority`", "who is preempted"),
    ("admission", "`watermark`, `full_prompt`", "whether a part of the pool must stay free when a request starts"),
    ("free_page_watermark", "0.01", "that part"),
    ("queue_limit", "None", "a request that finds so many waiting is refused"),
    ("timeout_s", "None", "a request older than this is ended"),
    ("deadline_s", "None", "a first token is due by then; for the policy `deadline`"),
    ("allocator", "`paged`, `contiguous`", "a page at a time; one run for prompt and longest output, first fit"),
)
INTRODUCTION = """
# The scheduler's knobs

Every knob is a field of `EngineConfig` (`nanoserve/engine/config.py`), one line of a config, and the same code in real
and simulated runs. Tokens do not depend on any of them. `nanoserve/engine/policy.py` has the policies, `batching.py`
static batches, `chunking.py` the sizes of chunks, `pages.py` and `runs.py` the two allocators.

FIELDS

A policy of one's own is a function with a name:

```python
from nanoserve.engine.policy import register_order

register_order("longest_first", lambda view, now_ticks: -view.prompt_tokens, steady=True)
```

and `Engine.policy = 'longest_first'`. What a view holds, and what each kind of function returns, is in `policy.py`.
A steady order costs O(log n) a request; one whose keys change is asked about all who wait, and keeps plans to one step
while somebody waits and a slot is free.

## How to read the tables

Made by `python experiments/knobs.py`: the first REQUESTS requests of the published Azure conversation trace on
Llama-2-70B, eight H100, calibrated pricing; prompts longer than the model's context are refused in every row. Each row
turns what it names and leaves the rest. Goodput counts answers with TTFT within 2 s and TPOT within 200 ms (MLPerf). A
member of a static batch has its answer when the batch ends. *KV utilisation* is positions written over positions held:
the rest is internal fragmentation. *Free, not usable* is the share of the pool in free runs shorter than the longest:
external fragmentation, nil by construction when paged.

The trace tells how many tokens were generated, not which limit the client had set. Where nothing else is said the limit
is what was generated, and a contiguous reservation is exactly as long as the answer; in the table without limits every
client may have all of the context, and answers stop where the trace's do. Under `fcfs` the youngest sequence is also
the one with least progress, so those two victims are one.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Rows that share a setting.

    Attributes:
      title: above its table. time_scale: of the trace. shared: `EngineConfig` fields of all rows.
      rows: what each row turns, beyond that.
      limited: requests have the limit that their answer reaches; else all of the context, and stop by themselves.
    """

    title: str
    time_scale: float
    shared: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    limited: bool = True


SECTIONS = (
    Section(
        title="Near saturation, memory in plenty",
        time_scale=NEAR,
        shared={},
        rows=(
            {},
            {"prefill_chunk_tokens": 1024},
            {"prefill_chunk_tokens": 512},
            {"chunking": "adaptive"},
            {"chunking": "adaptive", "decodes_per_prompt": 64.0},
            {"batching": "prefill_first"},
            {"batching": "static"},
            {"interval_s": 0.01},
            {"interval_s": 0.05},
            {"max_seqs": 128},
        ),
    ),
    Section(
        title=f"Near saturation, {FEW_PAGES:,} pages",
        time_scale=NEAR,
        shared={"num_pages": FEW_PAGES},
        rows=(
            {},
            {"free_page_watermark": 0.0},
            {"free_page_watermark": 0.05},
            {"allocator": "contiguous"},
        ),
    ),
    Section(
        title=f"The same without limits on answers, {FEW_PAGES:,} pages",
        time_scale=NEAR,
        shared={"num_pages": FEW_PAGES, "max_horizon_steps": 1},
        rows=({}, {"allocator": "contiguous"}),
        limited=False,
    ),
    Section(
        title="Beyond saturation, memory in plenty",
        time_scale=OVER,
        shared={},
        rows=(
            {},
            {"policy": "shortest_first"},
            {"policy": "deadline", "deadline_s": 2.0},
            {"queue_limit": 16},
        ),
    ),
)
BATCHINGS = (
    {"batching": "mixed"},
    {"batching": "prefill_first"},
    {"batching": "static"},
    {"batching": "static", "max_seqs": 128},
    {"batching": "static", "max_seqs": 64},
)
COLUMNS: Mapping[str, Callable[["Summary"], str]] = {
    "requests/s": lambda s: f"{s.requests_per_s:.2f}",
    "tokens/s": lambda s: f"{s.output_tokens_per_s:,.0f}",
    "TTFT p50, p95 (s)": lambda s: f"{s.ttft_s.p50:.2f}, {s.ttft_s.p95:.2f}",
    "TPOT p50, p95 (ms)": lambda s: f"{s.tpot_s.p50 * 1e3:.0f}, {s.tpot_s.p95 * 1e3:.0f}",
    "ITL p95, max (ms)": lambda s: f"{s.itl_s.p95 * 1e3:.0f}, {s.itl_s.max * 1e3:,.0f}",
    "goodput (1/s)": lambda s: f"{s.goodput_rps:.2f}",
    "running": lambda s: f"{s.running_mean:.0f}",
    "preempted": lambda s: f"{s.preemptions:,}",
    "KV utilisation": lambda s: f"{s.kv_utilization:.1%}",
}
LOST = "free, not usable"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run, and the share of the pool that was free in runs too short for anybody, over busy time."""

    summary: "Summary"
    lost: float

    def cells(self) -> list[str]:
        """The row of a table, without its name."""
        return [*(cell(self.summary) for cell in COLUMNS.values()), f"{self.lost:.1%}"]


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("trace", str(TRACE), "the request log", flag_values=own)
    flags.DEFINE_integer("requests", 8000, "how many of its requests to send", lower_bound=1, flag_values=own)
    flags.DEFINE_string("out", str(PAGE), "the page to write", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    def replayed(time_scale: float, fields: Mapping[str, Any], limited: bool = True) -> Outcome:
        return replay(asked.trace, asked.requests, time_scale, fields, limited)

    parts = [introduction(asked.requests)]
    for section in SECTIONS:
        rows = []
        for turned in section.rows:
            outcome = replayed(section.time_scale, {**section.shared, **turned}, section.limited)
            rows.append([name_of(turned), *outcome.cells()])
            print("  ".join(rows[-1]), flush=True)
        parts.append(f"## {section.title}\n\n" + table(["", *COLUMNS, LOST], rows))
    parts.append(_batching_part(replayed))
    command.write_text("--out", Path(asked.out), "\n\n".join(parts) + "\n")
    print(f"written to {asked.out}")
    return 0


def introduction(requests: int) -> str:
    """What stands above the tables."""
    fields = table(["`Engine.`", "values", "what it does"], [[f"`{name}`", *rest] for name, *rest in FIELDS])
    return INTRODUCTION.strip().replace("REQUESTS", f"{requests:,}").replace("FIELDS", fields)


def replay(trace: str, requests: int, time_scale: float, fields: Mapping[str, Any], limited: bool = True) -> Outcome:
    """Replays the trace once.

    Args:
      trace: its path. requests: how many of it. time_scale: multiplies its arrival times.
      fields: of `EngineConfig`, where they differ from the default.
      limited: as in `Section`.

    Raises:
      ConfigError, TraceError: a field or a file that cannot be used.
    """
    from nanoserve.engine.config import EngineConfig
    from nanoserve.experiment import Cluster, Experiment, SloConfig
    from nanoserve.replay import prepare
    from nanoserve.report.metrics import summarize
    from nanoserve.trace.source import TraceSource

    experiment = Experiment(
        model=MODEL,
        executor="roofline",
        cluster=Cluster(chip=CHIP, mesh={"tensor": WAYS}),
        engine=EngineConfig(**fields),
        trace=TraceSource(path=trace, limit=requests, time_scale=time_scale),
        slo=SloConfig(name=SLO),
    )
    ready = prepare(experiment)
    if not limited:
        ready = _without_limits(ready)
    ready.run()
    records = ready.records()
    summary = summarize(
        records.steps,
        records.requests,
        ready.facts.slo,
        issued=ready.issued,
        page_tokens=experiment.engine.page_tokens,
    )
    names = ("pages_total", "pages_used", "largest_free_run", "duration_s")
    total, used, largest, duration_s = (records.steps[name].to_numpy() for name in names)
    return Outcome(summary, float(((total - used - largest) / total * duration_s).sum() / duration_s.sum()))


def _without_limits(ready: "Replay") -> "Replay":
    """The same load with every request free to fill the context; it stops where the trace says."""
    from nanoserve.executors.stopping import StoppingExecutor
    from nanoserve.replay import simulated_twin
    from nanoserve.trace.slices import with_stated_limit

    trace, spec = ready.trace, ready.facts.model
    stopping = StoppingExecutor(ready.engine.executor, dict(enumerate(trace.output_tokens.tolist())))
    return simulated_twin(ready, stopping, with_stated_limit(trace, spec.max_context_tokens - trace.prompt_tokens))


def highest_rate(replayed: Callable[[float, Mapping[str, Any]], Outcome], fields: Mapping[str, Any]) -> Outcome:
    """The run at the highest rate at which 95% of the requests are answered whole within `E2E_LIMIT_S`.

    Bisects the time scale in ratios, `SEARCH_STEPS` times between twice the overload above and `SLOWEST`.

    Raises:
      ConfigError: not even the slowest pace is kept.
    """
    fast, slow = OVER / 2, SLOWEST
    best = replayed(slow, fields)
    if best.summary.e2e_s.p95 > E2E_LIMIT_S:
        raise ConfigError(f"{name_of(fields)}: at {SLOWEST:g} times the gaps, p95 is still over {E2E_LIMIT_S:g} s")
    for _ in range(SEARCH_STEPS):
        middle = (fast * slow) ** 0.5
        outcome = replayed(middle, fields)
        if outcome.summary.e2e_s.p95 <= E2E_LIMIT_S:
            slow, best = middle, outcome
        else:
            fast = middle
    return best


def _batching_part(replayed: Callable[[float, Mapping[str, Any]], Outcome]) -> str:
    rows, best = [], {}
    for fields in BATCHINGS:
        summary = highest_rate(replayed, fields).summary
        kind = fields["batching"]
        best[kind] = max(best.get(kind, 0.0), summary.requests_per_s)
        rows.append([name_of(fields), f"{summary.requests_per_s:.2f}", f"{summary.e2e_s.p95:.1f}"])
        rows[-1] += [f"{summary.running_mean:.0f}", f"{summary.ttft_s.p95:.2f}"]
        print("  ".join(rows[-1]), flush=True)
    text = table(["", "requests/s", "e2e p95 (s)", "running", "TTFT p95 (s)"], rows)
    ratio = best["mixed"] / best["static"]
    return (
        f"## Batching at an equal 95th percentile\n\nThe highest rate at which 95% of the requests have their whole "
        f"answer within {E2E_LIMIT_S:g} s.\nContinuous batching serves {ratio:.1f} times what the best static batch "
        f"does.\n\n{text}"
    )


def name_of(fields: Mapping[str, Any]) -> str:
    """What a row turns, as in a config."""
    return ", ".join(f"`{name} = {value!r}`" for name, value in fields.items()) or "default"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
