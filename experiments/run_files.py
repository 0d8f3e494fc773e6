"""What a finished or interrupted run writes: records first, then the summary and the reports made from them."""

import dataclasses
import functools
import json
import tempfile
from typing import TYPE_CHECKING

from experiments.run_service_logs import write_service_logs
from nanoserve.report.content import ReportData, Roof, Table
from nanoserve.report.fleet import PoolShare, engine_loads, engine_table, pool_table
from nanoserve.report.metrics import Summary, summarize
from nanoserve.report.run_folder import RunFolder, environment
from nanoserve.roofline.calibration import provenance
from nanoserve.specs.config import Loaded
from nanoserve.specs.errors import CapacityError

if TYPE_CHECKING:
    from nanoserve.engine.tape import Tape
    from nanoserve.replay import Records, Replay
    from nanoserve.roofline.profiled import Profile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that is over, to its end or not.

    Attributes:
      loaded: its config. replay: the engine with its log. trace_hash: `replay.trace_fingerprint` of its trace.
      complete: every request left the engine by itself. elapsed_s: wall time from reading the trace to the last step.
      tape: what a real engine was told about time; None for a run that repeats itself without.
      profile: where a step's time went, of a run that was profiled.
    """

    loaded: Loaded
    replay: "Replay"
    trace_hash: str
    complete: bool
    elapsed_s: float
    tape: "Tape | None" = None
    profile: "Profile | None" = None

    @functools.cached_property
    def environment(self) -> dict:
        """`env.json`."""
        experiment = self.replay.experiment
        found = environment(
            device_kind=self.replay.choice.device_kind,
            seeds={"experiment": experiment.seed, "trace": experiment.trace.seed},
            trace_hash=self.trace_hash,
            weights_hash=self.replay.weights_fingerprint,
        )
        source, elapsed_s = self.replay.trace.source, round(self.elapsed_s, 3)
        how = {"how": self.replay.choice.line, "attention": self.replay.attention}
        return {**how, **found, "trace_source": source, "elapsed_s": elapsed_s}


def write_run(folder: RunFolder, outcome: Outcome) -> Summary:
    """Writes everything of a run and, if it is complete, marks the folder.

    If the folder cannot be written, the run is written whole to a new temporary folder before the error is raised.

    Raises:
      CapacityError: the disk is full or the folder cannot be written; it says where the run is now.
    """
    try:
        return _write_all(folder, outcome)
    except CapacityError as error:
        raise CapacityError(f"{error}. {_rescued(folder, outcome)}") from error


def write_records(folder: RunFolder, outcome: Outcome) -> "Records":
    """Writes the config, the environment and everything that was logged; nothing that has to be computed from it."""
    records = outcome.replay.records()
    folder.write_config(outcome.loaded.as_written, outcome.loaded.operative)
    folder.write_environment(outcome.environment)
    folder.write_records(records.requests, records.steps)
    folder.write_events(records.event_lines())
    folder.write_outputs(json.dumps(entry, ensure_ascii=False) + "\n" for entry in outcome.replay.outputs())
    if outcome.tape is not None:
        folder.write_tape(outcome.tape.rows())
    return records


def print_run(outcome: Outcome, summary: Summary) -> None:
    """Prints the summary, how the run was made, and with which constants it was priced."""
    from nanoserve.report.terminal import print_summary

    replay = outcome.replay
    calibration = replay.calibration
    print_summary(summary)
    state = "complete" if outcome.complete else "partial: the run was stopped"
    print(f"{replay.choice.line}; {state}; {outcome.elapsed_s:.1f} s of work")
    role = "priced with" if replay.choice.executor == "roofline" else "measured; time by bound is divided with"
    file = f", {calibration.file}" if calibration.file else ""
    print(f"{role} {calibration.name} ({calibration.mode}{file}): {calibration.validation}")


def _write_all(folder: RunFolder, outcome: Outcome) -> Summary:
    records = write_records(folder, outcome)
    summary = _summary(outcome.replay, records)
    folder.write_summary(_summary_dict(outcome, summary))
    _write_report(folder, outcome, records, summary)
    if outcome.replay.experiment.service_logs.start is not None:
        write_service_logs(folder, outcome.replay, records)
    if outcome.complete:
        folder.finish()
    return summary


def _rescued(folder: RunFolder, outcome: Outcome) -> str:
    """Writes a run that has lost its folder to a temporary one; returns a sentence that says where."""
    try:
        rescue = RunFolder(tempfile.mkdtemp(prefix="nanoserve-"), folder.path.parent.name, folder.path.name)
        _write_all(rescue, outcome)
    except (CapacityError, OSError) as error:
        return f"Nor can the run be kept elsewhere: {error}"
    return f"The whole run is kept in {rescue.path}"


def _summary(replay: "Replay", records: "Records") -> Summary:
    return summarize(
        records.steps,
        records.requests,
        replay.facts.slo,
        issued=replay.issued,
        page_tokens=replay.experiment.engine.page_tokens,
        engines=len(replay.members),
    )


def _constants(replay: "Replay") -> list[tuple]:
    """What every kind of chip is priced with."""
    pools = {pool.cluster.chip.name: pool for pool in replay.pools}
    return [row for pool in pools.values() for row in provenance(pool.calibration, pool.cluster.chip)]


def _fleet_tables(replay: "Replay", records: "Records", summary: Summary) -> list[Table]:
    """What each engine did and each pool costs; nothing for a single engine."""
    if len(replay.members) == 1:
        return []
    pools = [PoolShare(name=pool.name, cluster=pool.cluster) for pool in replay.pools]
    loads = engine_loads(records.steps, pools, summary.duration_s)
    return [engine_table(loads), pool_table(pools, loads, summary)]


def _summary_dict(outcome: Outcome, summary: Summary) -> dict:
    replay = outcome.replay
    calibration = replay.calibration
    return {
        "how": replay.choice.line,
        "complete": outcome.complete,
        "requests_in_trace": len(replay.trace),
        "pricing": {
            "mode": calibration.mode,
            "constants": calibration.name,
            "file": calibration.file,
            "validation": str(calibration.validation),
        },
        "elapsed_s": round(outcome.elapsed_s, 3),
        **summary.as_dict(),
    }


def _write_report(folder: RunFolder, outcome: Outcome, records: "Records", summary: Summary) -> None:
    from nanoserve.report.html import render_html
    from nanoserve.report.markdown import render_markdown

    replay = outcome.replay
    cluster, compute = replay.facts.cluster, replay.experiment.precision.compute
    data = ReportData(
        title=replay.experiment.name,
        how=replay.choice.line,
        summary=summary,
        steps=records.steps,
        requests=records.requests,
        roof=Roof(
            chip=cluster.chip.name,
            chips=sum(pool.cluster.count for pool in replay.pools),
            dtype=compute,
            peak_flops_per_s=cluster.chip.peak(compute),
            hbm_bytes_per_s=cluster.chip.hbm_bytes_per_s,
        ),
        constants=_constants(replay),
        operative=outcome.loaded.operative,
        environment=outcome.environment,
        fleet=_fleet_tables(replay, records, summary),
        profile=outcome.profile,
    )
    folder.write_report(render_html(data), render_markdown(data))
