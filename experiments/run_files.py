"""What a finished or interrupted run writes: records first, then the summary and the reports made from them."""

import json
from typing import TYPE_CHECKING

from nanoserve.report.content import ReportData, Roof
from nanoserve.report.metrics import Summary, summarize
from nanoserve.report.run_folder import RunFolder, environment
from nanoserve.roofline.calibration import provenance
from nanoserve.specs.config import Loaded

if TYPE_CHECKING:
    from nanoserve.replay import Records, Replay


def write_run(
    folder: RunFolder, loaded: Loaded, replay: "Replay", trace_hash: str, *, complete: bool, elapsed_s: float
) -> None:
    """Writes everything of a run and, if it is complete, prints the summary and marks the folder.

    Raises:
      CapacityError: the disk is full or the folder cannot be written; what was written before is kept.
    """
    records = replay.records()
    environment = _environment(replay, trace_hash, elapsed_s)
    folder.write_config(loaded.as_written, loaded.operative)
    folder.write_environment(environment)
    folder.write_records(records.requests, records.steps)
    folder.write_events(records.event_lines())
    folder.write_outputs(json.dumps(entry, ensure_ascii=False) + "\n" for entry in replay.outputs())
    summary = _summary(replay, records)
    folder.write_summary(_summary_dict(replay, summary, complete, elapsed_s))
    _write_report(folder, loaded, replay, records, summary, environment)
    _print(replay, summary, complete, elapsed_s)
    if complete:
        folder.finish()


def _environment(replay: "Replay", trace_hash: str, elapsed_s: float) -> dict:
    experiment = replay.experiment
    found = environment(
        device_kind=replay.choice.device_kind,
        seeds={"experiment": experiment.seed, "trace": experiment.trace.seed},
        trace_hash=trace_hash,
        weights_hash=replay.weights_fingerprint,
    )
    return {"how": replay.choice.line, **found, "trace_source": replay.trace.source, "elapsed_s": round(elapsed_s, 3)}


def _summary(replay: "Replay", records: "Records") -> Summary:
    return summarize(
        records.steps,
        records.requests,
        replay.facts.slo,
        issued=replay.issued,
        page_tokens=replay.experiment.engine.page_tokens,
    )


def _summary_dict(replay: "Replay", summary: Summary, complete: bool, elapsed_s: float) -> dict:
    calibration = replay.calibration
    return {
        "how": replay.choice.line,
        "complete": complete,
        "requests_in_trace": len(replay.trace),
        "pricing": {"mode": calibration.mode, "constants": calibration.name, "validation": calibration.validation},
        "elapsed_s": round(elapsed_s, 3),
        **summary.as_dict(),
    }


def _write_report(
    folder: RunFolder, loaded: Loaded, replay: "Replay", records: "Records", summary: Summary, environment: dict
) -> None:
    from nanoserve.report.html import render_html
    from nanoserve.report.markdown import render_markdown

    cluster, compute = replay.facts.cluster, replay.experiment.precision.compute
    data = ReportData(
        title=replay.experiment.name,
        how=replay.choice.line,
        summary=summary,
        steps=records.steps,
        requests=records.requests,
        roof=Roof(
            chip=cluster.chip.name,
            chips=cluster.count,
            dtype=compute,
            peak_flops_per_s=cluster.chip.peak(compute),
            hbm_bytes_per_s=cluster.chip.hbm_bytes_per_s,
        ),
        constants=provenance(replay.calibration, cluster.chip),
        operative=loaded.operative,
        environment=environment,
    )
    folder.write_report(render_html(data), render_markdown(data))


def _print(replay: "Replay", summary: Summary, complete: bool, elapsed_s: float) -> None:
    from nanoserve.report.terminal import print_summary

    calibration = replay.calibration
    print_summary(summary)
    state = "complete" if complete else "partial: the run was stopped"
    print(f"{replay.choice.line}; {state}; {elapsed_s:.1f} s of work")
    print(f"priced with {calibration.name} ({calibration.mode}): {calibration.validation}")
