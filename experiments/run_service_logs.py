"""What `ServiceLogs.start` adds to a run: the logs that a production service would have left, in `logs/` of its folder.

`api`, `telemetry`, `app` and `errors` are the four sources that `experiments/analyze.py` takes apart; `sample` is what
they join into, one row a request. Next: `nanoserve.report.service_logs`.
"""

import datetime
from typing import TYPE_CHECKING

from nanoserve.report.run_folder import RunFolder
from nanoserve.roofline.memory import memory_plan
from nanoserve.roofline.split import split_of

if TYPE_CHECKING:
    import polars as pl

    from nanoserve.building import Member
    from nanoserve.replay import Records, Replay
    from nanoserve.report.service_telemetry import Machine


def write_service_logs(folder: RunFolder, replay: "Replay", records: "Records") -> None:
    """Writes the logs of a run.

    Args:
      folder: of the run. replay: what ran; its config has a date for the logs to start at. records: what it left.
    """
    from nanoserve.report.service_logs import as_file, sample

    start = datetime.datetime.fromisoformat(f"{replay.experiment.service_logs.start}T00:00:00+00:00")
    logs = service_logs_of(replay, records)
    files = {name: as_file(log, start) for name, log in logs.items()}
    files["sample"] = sample(logs["api"], logs["app"], start)
    folder.write_service_logs(files, replay.experiment.engine.page_tokens)


def service_logs_of(replay: "Replay", records: "Records") -> "dict[str, pl.DataFrame]":
    """The four logs of a run as tables, times in seconds of the run."""
    from nanoserve.report.service_logs import service_logs

    leaks = replay.experiment.faults.leak_every is not None
    machines = [machine_of(member, leaks) for member in replay.members]
    bucket_s = replay.experiment.service_logs.bucket_s
    return service_logs(records.steps, records.requests, replay.trace, machines, bucket_s)


def machine_of(member: "Member", leaks: bool) -> "Machine":
    """What a monitor knows of a replica's chips, taken together; `leaks`: pages are planted to leak."""
    from nanoserve.report.service_telemetry import Machine

    pool, config = member.pool, member.pool.config
    plan = memory_plan(
        pool.model,
        pool.cluster,
        pool.precision,
        page_tokens=config.page_tokens,
        max_step_tokens=config.max_step_tokens,
        max_seqs=config.max_seqs,
        draft=pool.draft,
    )
    chips = split_of(pool.cluster).replica_chips
    return Machine(
        memory_bytes=float(chips * plan.hbm_bytes),
        held_bytes=float(chips * (plan.weight_bytes + plan.activation_bytes + plan.runtime_bytes)),
        page_bytes=float(chips * plan.page_bytes / plan.kv_groups),
        pages=pool.pages,
        holds_when_idle=leaks or config.keep_session_s > 0,
    )
