"""Runs every config of configs/ablations on two traces, and writes docs/ablations.md.

    python experiments/ablate.py
    python experiments/ablate.py --only=default,static --out=/tmp/ablations.md

One knob a config, each beside `default.gin`: Llama 3.1 70B on eight H100, simulated in calibrated mode at the pace at
which the default is just saturated. The traces are the published Azure conversation and a published log of coding
agents, whose prompts share long prefixes. A row is one config on one trace, and
`run.py --config=configs/ablations/NAME.gin` makes its whole report.

Takes a few minutes. Exit code 0: the page is written. 2: something the user can mend.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.report.markdown import table

if TYPE_CHECKING:
    import polars as pl

    from nanoserve.report.metrics import Summary

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "configs" / "ablations"
PAGE = REPOSITORY / "docs" / "ablations.md"
DEFAULT = "default"
AGENTS = (
    "TraceSource.path='../shared/traces/agent_miniswe_smollm2_blk16.jsonl'",
    "TraceSource.limit=None",
    "TraceSource.time_scale=0.33",
)
TRACES: Mapping[str, tuple[str, ...]] = {"Conversation": (), "Coding agents": AGENTS}
WITHOUT_PREFIXES = "Conversation"  # its log has lengths only, so no prefix cache can be tried on it
NAMING = ("Experiment.name", "Experiment.executor")  # lines that turn nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One config on one trace.

    Attributes:
      summary: of the run. hit_share: prompt tokens that a prefix cache had, of those of admitted requests.
    """

    summary: "Summary"
    hit_share: float


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "tokens/s": lambda row: f"{row.summary.output_tokens_per_s:,.0f}",
    "TTFT p50, p95 (s)": lambda row: f"{row.summary.ttft_s.p50:.2f}, {row.summary.ttft_s.p95:.2f}",
    "TPOT p50, p95 (ms)": lambda row: f"{row.summary.tpot_s.p50 * 1e3:.0f}, {row.summary.tpot_s.p95 * 1e3:.0f}",
    "ITL p95, max (ms)": lambda row: f"{row.summary.itl_s.p95 * 1e3:.0f}, {row.summary.itl_s.max * 1e3:,.0f}",
    "goodput (1/s)": lambda row: f"{row.summary.goodput_rps:.2f}",
    "running": lambda row: f"{row.summary.running_mean:.0f}",
    "preempted": lambda row: f"{row.summary.preemptions:,}",
    "refused": lambda row: f"{row.summary.finish_reasons['refused']:,}",
    "out of memory": lambda row: f"{row.summary.finish_reasons['out_of_memory']:,}",
    "KV utilisation": lambda row: f"{row.summary.kv_utilization:.1%}",
    "from cache": lambda row: f"{row.hit_share:.1%}",
    "padding": lambda row: f"{1 - row.summary.useful_tokens / row.summary.executed_tokens:.0%}",
}
INTRODUCTION = """
# Ablations

One table for each trace; a row is one committed config, `configs/ablations/NAME.gin`, which differs from `default.gin`
in the lines shown. Made by `python experiments/ablate.py`. To see a row's whole report:

```sh
python experiments/run.py --config=configs/ablations/static.gin
python experiments/run.py --config=configs/ablations/static.gin AGENTS
```

Everything here is simulated (Llama 3.1 70B on eight H100, calibrated mode), by the scheduler that executed runs use:
docs/validation.md says how wrong such runs are. `default` is paced just beyond saturation, so a knob that makes the
engine faster shows in tokens per second, and one that spares waiting shows in TTFT and goodput. Goodput counts answers
with TTFT within 2 s and TPOT within 200 ms (MLPerf's limits of Llama 2 70B). *KV utilisation* is positions written over
positions held, *from cache* the share of prompt tokens that a prefix cache had, *padding* the share of tokens through
the layers that nobody asked for. A member of a static batch has its answer when the batch ends. The conversation log
has lengths only, so prefix caches are in the second table alone. `speculative_ngram` is told how often a guess is
right; docs/speculation.md has what was measured.

`docs/scheduling.md` has more rows about the scheduler, and the highest rate that each kind of batching keeps at an
equal 95th percentile.
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_list("only", None, "names of configs to run; all of them unless set", flag_values=own)
    flags.DEFINE_string("out", str(PAGE), "the page to write", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    names = names_of(FOLDER)
    for name in asked.only or ():
        command.known("--only", "ablation", [name], names)
    chosen = [name for name in names if asked.only is None or name in asked.only]
    parts = [INTRODUCTION.strip().replace("AGENTS", " ".join(f'--set="{line}"' for line in AGENTS))]
    for trace, overrides in TRACES.items():
        rows = []
        for name in chosen:
            if trace == WITHOUT_PREFIXES and "Engine.prefix_cache" in turned(name):
                continue
            row = run(name, overrides)
            rows.append([f"`{name}`", turned(name), *(cell(row) for cell in COLUMNS.values())])
            print("  ".join(rows[-1]), flush=True)
        parts.append(f"## {trace}\n\n" + table(["config", "turns", *COLUMNS], rows))
    command.write_text("--out", Path(asked.out), "\n\n".join(parts) + "\n")
    print(f"written to {asked.out}")
    return 0


def names_of(folder: Path) -> list[str]:
    """The folder's configs, the default first."""
    return sorted((path.stem for path in folder.glob("*.gin")), key=lambda name: (name != DEFAULT, name))


def turned(name: str) -> str:
    """The lines in which a config differs from the default, as Markdown."""
    own, default = (_lines(each) for each in (name, DEFAULT))
    differing = [line for line in own if line not in default and not line.startswith(NAMING)]
    return ", ".join(f"`{line}`" for line in differing)


def _lines(name: str) -> list[str]:
    from nanoserve.experiment import CONFIG_CLASSES
    from nanoserve.specs.config import load

    return load(FOLDER / f"{name}.gin", CONFIG_CLASSES, "Experiment").operative.splitlines()


def run(name: str, overrides: Sequence[str]) -> Row:
    """Simulates a config on the trace that the overrides choose.

    Raises:
      ConfigError, TraceError, CapacityError: it cannot be run; a trace that is absent, for instance.
    """
    from nanoserve.experiment import CONFIG_CLASSES
    from nanoserve.replay import prepare
    from nanoserve.report.metrics import summarize
    from nanoserve.specs.config import load

    experiment = load(FOLDER / f"{name}.gin", CONFIG_CLASSES, "Experiment", overrides).value
    replay = prepare(experiment)
    replay.run()
    records = replay.records()
    page_tokens = experiment.engine.page_tokens
    summary = summarize(
        records.steps, records.requests, replay.facts.slo, issued=replay.issued, page_tokens=page_tokens
    )
    return Row(summary=summary, hit_share=_hit_share(records.requests))


def _hit_share(requests: "pl.DataFrame") -> float:
    admitted = requests.filter(requests["admitted_s"].is_not_null())
    return float(admitted["cached_tokens"].sum()) / max(1, int(admitted["prompt_tokens"].sum()))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
