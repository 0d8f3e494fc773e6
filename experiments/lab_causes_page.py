"""Makes docs/lab_causes.md of the rows that `lab_causes` counted: hits, false alarms, and what causes cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanoserve.analysis.failures.cause import NAMED_SCORE
from nanoserve.report.markdown import table

HEALTHY, TOGETHER = "lab_week_healthy", "lab_week_baseline"
PLANTED: Mapping[str, str] = {
    "contiguous": "contiguous_allocation",
    "interval": "slow_interval",
    "no_admission": "no_admission_control",
    "leak": "memory_leak",
    "slow_replica": "slow_replica",
}
"""Config in `configs/lab` -> the cause that it switches on."""

ALL_OF_THEM = ("contiguous_allocation", "no_admission_control", "slow_interval", "few_slots")
"""The causes that `lab_week_baseline` has on: the fourth is its small batch, which no config of `configs/lab` has."""

INTRODUCTION = """
# Causes that are planted, and causes that are named

Made by `python experiments/lab_causes.py`. A chatbot service of two replicas is simulated on DAYS days of its week,
SEEDS times with other requests: in order (`lab_week_healthy`), and with one cause of trouble switched on
(`configs/lab`). Each run writes the four logs that a production service would have; they alone are read, and every
cause is weighed (`nanoserve/analysis/failures`). Seeds on which the detectors were tried are not among these.

*First* counts runs in which the planted cause is named before all others, *false alarms* causes that were named and not
planted. A cause is named from a score of THRESHOLD on: the share of the service that is lost to it.
"""
COST = """
## What a cause costs, and what the logs say of it

The loss of a request is the share of its time that an idle engine would not have taken; one that fails loses
everything. *Really* is the loss of a run less that of the same seed in order, *explained* the part that the diagnosis
has down to the planted cause; means over seeds, with the smallest and the largest. A leak is named for the memory that
is gone, before requests feel it. A cause can also spare others something: requests that fail or wait make no line.
"""

REPLAYS = """
## Causes that are tested by a replay

The causes named in the first `lab_week_baseline`, which has four of them on: the same requests under the same config,
with one cause taken out. The others remain, and may then hurt more: requests that no longer fail wait for a slot, and a
paged pool that is full of what sessions keep still fails whom it does not fit. The last row takes out all of them.
"""

Row = Mapping[str, Any]


def page(figures: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
      figures: `days` of each run, `rows` of `lab_causes.diagnosed`, and `replays`, of `lab_causes.replayed`.
    """
    rows = figures["rows"]
    seeds = len({row["seed"] for row in rows})
    introduction = INTRODUCTION.strip().replace("DAYS", str(figures["days"])).replace("SEEDS", str(seeds))
    parts = [introduction.replace("THRESHOLD", f"{NAMED_SCORE:.1%}"), _verdict(rows), _hits(rows), _scores(rows)]
    parts += [COST.strip(), _costs(rows)]
    if figures["replays"]:
        parts += [REPLAYS.strip(), _replays(figures["replays"])]
    return "\n\n".join(parts) + "\n"


def planted_in(config: str) -> tuple[str, ...]:
    """The causes that a config has on."""
    return ALL_OF_THEM if config == TOGETHER else (PLANTED[config],) if config in PLANTED else ()


def is_hit(row: Row) -> bool:
    """Whether the first cause that is named was planted; of a service in order, whether none is named."""
    planted = planted_in(row["config"])
    return row["named"][0] in planted if planted and row["named"] else not planted and not row["named"]


def false_alarms(row: Row) -> list[str]:
    """Causes that are named and were not planted."""
    return [name for name in row["named"] if name not in planted_in(row["config"])]


def _verdict(rows: Sequence[Row]) -> str:
    alone = [row for row in rows if row["config"] in PLANTED]
    order = [row for row in rows if row["config"] == HEALTHY]
    hits, calm = sum(map(is_hit, alone)), sum(map(is_hit, order))
    alarms = sum(len(false_alarms(row)) for row in (*alone, *order))
    return (
        f"**Alone, the planted cause is named first in {hits} of {len(alone)} runs; a service in order names none in "
        f"{calm} of {len(order)}. False alarms in all of these: {alarms}.**"
    )


def _by_config(rows: Sequence[Row]) -> dict[str, list[Row]]:
    order = [HEALTHY, *PLANTED, TOGETHER]
    return {name: found for name in order if (found := [row for row in rows if row["config"] == name])}


def _hits(rows: Sequence[Row]) -> str:
    lines = []
    for name, own in _by_config(rows).items():
        alarms = [alarm for row in own for alarm in false_alarms(row)]
        planted = ", ".join(planted_in(name)) or "none"
        lines.append([f"`{name}`", planted, f"{sum(map(is_hit, own))} of {len(own)}", str(len(alarms))])
    return table(["config", "planted", "first", "false alarms"], lines)


def _scores(rows: Sequence[Row]) -> str:
    """Runs that name each cause, and the mean score."""
    causes = [*PLANTED.values(), "few_slots"]
    lines = []
    for name, own in _by_config(rows).items():
        cells = []
        for cause in causes:
            named = sum(cause in row["named"] for row in own)
            cells.append(f"{named} ({np.mean([row['scores'].get(cause, 0.0) for row in own]):.2%})")
        lines.append([f"`{name}`", *cells])
    return "Runs that name a cause, and its mean score:\n\n" + table(["config", *causes], lines)


def _costs(rows: Sequence[Row]) -> str:
    in_order = {row["seed"]: row for row in rows if row["config"] == HEALTHY}
    lines = []
    for name, own in _by_config(rows).items():
        paired = [row for row in own if row["seed"] in in_order]
        if not paired:
            continue
        failed = _spread([row["failed"] for row in paired])
        lost = _spread([row["lost"] for row in paired])
        really = _spread([row["lost"] - in_order[row["seed"]]["lost"] for row in paired])
        explained = [sum(row["explained"].get(cause, 0.0) for cause in planted_in(name)) for row in paired]
        lines.append([f"`{name}`", failed, lost, really, _spread(explained) if planted_in(name) else ""])
    return table(["config", "failed", "lost", "really", "explained"], lines)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2%} ({min(values):.2%} to {max(values):.2%})"


def _replays(replays: Sequence[Row]) -> str:
    before = replays[0]["before"]
    lines = [["as it is", "", *_outcome(before)]]
    for each in replays:
        without = ", ".join(f"`{name} = {value!r}`" for name, value in each["bindings"].items())
        lines.append([f"without {each['cause']}: {without}", f"{each['explained']:.2%}", *_outcome(each["after"])])
    return table(["config", "explained by it", "lost", "failed", "TTFT p95 (s)", "latency p95 (s)"], lines)


def _outcome(outcome: Mapping[str, float]) -> list[str]:
    times = [f"{outcome[name]:.2f}" for name in ("ttft_p95_s", "latency_p95_s")]
    return [f"{outcome['lost']:.2%}", f"{outcome['failed']:.2%}", *times]
