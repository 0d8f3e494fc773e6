"""What `experiments/validate.py` prints and writes: tables as lines of text, and the page docs/validation.md.

The page states for every group which constants priced it, whether its rows were held out, and how they were replayed.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments import command
from nanoserve.analysis.published.comparison import METRICS, Comparison
from nanoserve.analysis.published.rows import NotReplayed
from nanoserve.analysis.published.targets import judge
from nanoserve.analysis.published.validation import ErrorSummary, errors_by

_GROUP = ("source", "engine", "model", "chip", "precision", "constants")
_HEADINGS = {"ttft": "mean TTFT", "tpot": "TPOT", "throughput": "throughput"}


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as a Markdown table, which a terminal shows well too; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def targets_table(comparisons: Sequence[Comparison]) -> list[str]:
    """Every target that was tried: limit, what was found, and on how many rows."""
    head = ("target", "error", "limit", "found", "bias", "rows", "reached")
    rows = [
        (
            verdict.target.rows,
            f"{'mean' if verdict.target.statistic == 'mean_abs' else 'median'} of {_heading(verdict.target.metric)}",
            f"{verdict.target.limit:.0%}",
            f"{verdict.value:.1%}",
            f"{verdict.found.bias:+.1%}",
            _rows(verdict.found.rows, verdict.training_rows),
            "yes" if verdict.reached else "no",
        )
        for verdict in judge(comparisons)
    ]
    return table([head, *rows])


def group_table(comparisons: Sequence[Comparison], fields: Sequence[str] = _GROUP) -> list[str]:
    """Errors of every group of rows that share `fields`: mean, median, 90th percentile, and bias, of each metric."""
    head = (*fields, "rows", *(f"{_HEADINGS[metric]}: mean, p50, p90 (bias)" for metric in METRICS))
    groups = errors_by(comparisons, fields)
    rows = [
        (*group, str(max(e.rows for e in errors.values())), *(_summary(errors.get(metric)) for metric in METRICS))
        for group, errors in groups.items()
    ]
    return table([head, *rows])


def log_table(comparison: Comparison) -> list[str]:
    """A per-request log: measured, predicted and error of each statistic."""
    head = ("statistic", "measured", "predicted", "error")
    rows = []
    for metric, value in comparison.values.items():
        unit, times = ("tok/s", 1.0) if metric == "throughput" else ("ms", 1e3)
        cells = (f"{number * times:,.1f} {unit}" for number in (value.measured, value.predicted))
        rows.append((_heading(metric), *cells, f"{value.error:+.1%}"))
    return table([head, *rows])


def skipped_table(skipped: Iterable[NotReplayed]) -> list[str]:
    """Rows that were not replayed, counted by source and reason."""
    counts = collections.Counter((item.source, _shortened(item.reason)) for item in skipped)
    rows = [(source, str(count), reason) for (source, reason), count in sorted(counts.items())]
    return table([("not replayed", "rows", "because"), *rows])


def write(folder: Path, comparisons: Sequence[Comparison], skipped: Sequence[NotReplayed]) -> None:
    """Writes the page, and beside it every row and the plots.

    Raises:
      ConfigError: a file cannot be written.
    """
    from experiments import validation_plots

    beside = folder / "validation"
    try:
        beside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise command.ConfigError(f"--out={folder}: {error.strerror}. Name a folder that can be made") from error
    command.write_text("--out", beside / "rows.json", _json(comparisons))
    validation_plots.write(beside, comparisons)
    command.write_text("--out", folder / "validation.md", "\n".join(page(comparisons, skipped)) + "\n")
    print(f"\nwritten to {folder / 'validation.md'} and {beside}")


def page(comparisons: Sequence[Comparison], skipped: Sequence[NotReplayed]) -> list[str]:
    """The lines of docs/validation.md."""
    logs = [comparison for comparison in comparisons if comparison.source.startswith("log ")]
    rows = [comparison for comparison in comparisons if comparison not in logs]
    trained = [c for c in comparisons if c.training]
    parts = [
        *_OPENING.format(
            rows=len(rows), logs=sum("held-out" not in c.source for c in logs), skipped=len(skipped)
        ).split("\n"),
        *targets_table(comparisons),
        *_FITTED.format(trained=_training(trained)).split("\n"),
        *group_table(rows),
        "",
        "![predicted against measured](validation/scatter.png)",
        "",
        "![errors by group](validation/errors.png)",
        "",
        "## By tensor parallelism and by precision",
        "",
        *group_table(rows, ("constants", "chip", "tensor")),
        "",
        *group_table(rows, ("constants", "chip", "precision")),
        "",
    ]
    for log in logs:
        part = ", held-out requests" if "held-out" in log.source else ""
        parts += [f"## Request by request: {log.engine}, {log.model} on {log.chip}{part}", "", *log_table(log), ""]
    return [*parts, *_HOW.split("\n"), *skipped_table(skipped)]


_OPENING = """# How wrong the simulator is

Made by `python experiments/validate.py`; not edited by hand. {rows} published results and {logs} per-request log of a
vLLM server were replayed: the real scheduler, a virtual clock, and steps priced in `calibrated` mode. {skipped}
published results could not be replayed; the reasons are at the end. Every row is in
[validation/rows.json](validation/rows.json).

An error is predicted over measured, less one. *Mean*, *p50* and *p90* are of its size; *bias* is the mean, with sign.
"""

_FITTED = """
## What was fitted

Constants come from measured single operations ([calibration.md](calibration.md)), which are none of these rows. The
exceptions are fitted by `python experiments/fit_training.py`; their training rows are left out of the targets above and
of the error that a run prints:

{trained}

Rows of stacks of 2023 (splitwise, TensorRT-LLM 0.5) are priced with constants of 2025, shown for what they are, and
left out of that error too. Errors by group, training rows included:
"""

_HOW = """## How rows were replayed

- **Engine.** Token budget, slots and page size are the defaults of the stack and version on that hardware
  (`nanoserve/analysis/published/stacks.py`), unless the row states them. Slots of a closed loop are its number of
  users.
- **Requests.** As many as the row states, else ten a user and at most 1,500; from a cold start, all counted, as those
  clients do.
- **Lengths.** InferenceX rows ("U[0.8, 1.0]") draw prompts and outputs evenly from 0.8 of the nominal length to all of
  it. Closed loops that state one length have prompts of exactly that, and outputs even within 2% of it: exactly equal
  ones would run in lockstep for ever.
- **Arrivals.** A closed loop keeps its users' requests under way; a request joins one step after the one that begins
  when it arrives. At maximum throughput, and in MLPerf's Offline scenario, all requests are there at the start.
- **Precision.** Where a row states none, bf16. fp8 rows of TensorRT-LLM have fp8 KV, those of vLLM and SGLang bf16 KV.
- **Time to first token** of closed loops with one length depends on how users' phases fall: it is shown and no target.
- **MLPerf.** Replicas on as few chips as hold the model (two H100, one H200), the system's number of them. OpenOrca's
  lengths are drawn log-normal with a mean of 294 tokens each and at most 1,024. The Server scenario is a search for the
  highest Poisson rate with 99% of the first tokens within 2 s and of the times per token within 200 ms.
- **Chosen with these errors in view**, for the reasons given, and not fitted: vLLM's host gap of 0.1 ms where it plans
  ahead, the one step by which requests join late, and the 2% of outputs.

## What was not replayed
"""


def _training(trained: Sequence[Comparison]) -> str:
    if not trained:
        return "none."
    counts = collections.Counter((c.training, c.source, c.engine, c.model, c.tensor) for c in trained)
    return "\n".join(
        f"- {what}; {source}, {engine}, {model}, {tensor} chips{f': {count} rows' if count > 1 else ''}"
        for (what, source, engine, model, tensor), count in sorted(counts.items())
    )


def _heading(metric: str) -> str:
    name, _, statistic = metric.partition(" ")
    return f"{_HEADINGS[name].removeprefix('mean ')} {statistic}".strip()


def _rows(rows: int, training: int) -> str:
    if not training:
        return str(rows)
    return f"{rows}, training" if rows == training else f"{rows}, and {training} training rows left out"


def _summary(errors: ErrorSummary | None) -> str:
    if errors is None:
        return ""
    return f"{errors.mean_abs:.1%}, {errors.p50:.1%}, {errors.p90:.1%} ({errors.bias:+.1%})"


def _shortened(reason: str) -> str:
    """One reason for all rows of which the engine refused some request, or the weights left no room."""
    if not reason.startswith("does not fit"):
        return reason
    if "exceed the context" in reason:
        return "longer than the model's context"
    return reason.split(" leaves no room")[0] if "leaves no room" in reason else "a request does not fit in the pages"


def _json(comparisons: Sequence[Comparison]) -> str:
    def plain(comparison: Comparison) -> Mapping:
        values = {
            metric: {"measured": value.measured, "predicted": round(value.predicted, 6), "error": round(value.error, 4)}
            for metric, value in comparison.values.items()
        }
        return dataclasses.asdict(comparison) | {"values": values}

    return "[\n" + ",\n".join(json.dumps(plain(comparison)) for comparison in comparisons) + "\n]\n"
