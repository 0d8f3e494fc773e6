"""Plants one cause of trouble at a time in a simulated service, and counts how often its logs name it; writes a page.

    python experiments/lab_causes.py
    python experiments/lab_causes.py --seeds=2 --days=2 --out=/tmp/lab_causes.md

`configs/lab_week_healthy.gin` is a service in order; each config in `configs/lab` switches one cause on. Every run
writes its four logs as files, which are read and diagnosed as a stranger's logs would be: nothing else is handed over.
A hit is a run whose first named cause is the planted one; a false alarm is a cause that is named and was not planted.
The same seed without the cause says what it really cost. The causes that are named in the service with four of them
(`lab_week_baseline`) are then tested as those of a stranger's service would be: by replays without each.

Takes about 20 minutes. Rows are kept beside the page (`lab_causes.json`) as they are made: a run that was killed goes
on where it was, and figures are made again when that file is deleted. Exit code 0: the page is written. 2: something
the user can mend.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.lab_causes_page import HEALTHY, PLANTED, TOGETHER, page

if TYPE_CHECKING:
    from nanoserve.analysis.failures.case import Case
    from nanoserve.experiment import Experiment

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "lab_causes.md"
FIRST_SEED = 2000  # detectors were tried on smaller ones
DAY_S = 86400.0

Row = Mapping[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_integer("seeds", 10, "how many weeks, each with its own seed", lower_bound=1, flag_values=own)
    flags.DEFINE_integer("days", 3, "of the week, from Monday on", lower_bound=2, upper_bound=7, flag_values=own)
    flags.DEFINE_list("only", None, "names of configs to run; all of them unless set", flag_values=own)
    flags.DEFINE_string("out", str(PAGE), "the page to write; its rows lie beside it as JSON", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    from nanoserve.report.progress import Progress

    names = (HEALTHY, *PLANTED, TOGETHER)
    command.known("--only", "config", asked.only or (), names)
    out = Path(asked.out)
    kept = out.with_suffix(".json")
    figures = _kept(kept, asked.days)
    rows = figures["rows"]
    due = [(name, seed) for seed in _seeds(asked.seeds) for name in asked.only or names]
    with Progress(len(due), "runs diagnosed") as progress:
        for done, (name, seed) in enumerate(due):
            if not any((row["config"], row["seed"]) == (name, seed) for row in rows):
                rows.append(diagnosed(name, seed, asked.days))
                command.write_json("--out", kept, figures)
            progress.update(done + 1)
    if not figures["replays"] and any(row["config"] == TOGETHER for row in rows):
        figures["replays"] = replayed(TOGETHER, FIRST_SEED, asked.days)
        command.write_json("--out", kept, figures)
    command.write_text("--out", out, page(figures))
    print(f"written to {out}")
    return 0


def _seeds(count: int) -> Iterator[int]:
    yield from range(FIRST_SEED, FIRST_SEED + count)


def _kept(kept: Path, days: int) -> dict[str, Any]:
    """Figures that an earlier run of as many days left; none where there are no such."""
    empty = {"days": days, "rows": [], "replays": []}
    if not kept.exists():
        return empty
    figures = json.loads(kept.read_text())
    return empty | figures if figures["days"] == days else empty


def diagnosed(name: str, seed: int, days: int) -> Row:
    """Runs a config, and diagnoses what it wrote.

    Args:
      name: of the config. seed: of its requests. days: how many of them.

    Returns:
      What was named and how every cause was scored, as JSON values.
    """
    from nanoserve.analysis.failures.causes import diagnose

    case = _case(name, seed, days)
    found = diagnose(case)
    return {
        "config": name,
        "seed": seed,
        "requests": found.rows,
        "failed": float(case.service.failed.mean()),
        "lost": found.lost,
        "named": [cause.name for cause in found.named],
        "scores": {cause.name: cause.score for cause in found.ranked},
        "explained": {cause.name: cause.explained for cause in found.ranked},
    }


def replayed(name: str, seed: int, days: int) -> list[Row]:
    """Replays a config as it is, without each cause that its logs name, and without all of them, as JSON values."""
    from nanoserve.analysis.failures.cause import Cause
    from nanoserve.analysis.failures.causes import diagnose
    from nanoserve.analysis.failures.counterfactual import counterfactuals

    named = diagnose(_case(name, seed, days)).named
    bindings = {field: value for cause in named for field, value in cause.bindings.items()}
    together = Cause(
        name="all of them", says="all of them", explained=sum(cause.explained for cause in named), bindings=bindings
    )
    tests = counterfactuals([*named, together], _experiment(name, seed, days))
    return [
        {
            "cause": test.cause.name,
            "bindings": dict(test.cause.bindings),
            "explained": test.cause.explained,
            "before": dataclasses.asdict(test.before),
            "after": dataclasses.asdict(test.after),
        }
        for test in tests
    ]


def _case(name: str, seed: int, days: int) -> "Case":
    """What the logs of a run say, read from the files that it wrote."""
    from nanoserve.analysis.failures.case import Case
    from nanoserve.analysis.logs.read import open_logs
    from nanoserve.analysis.service import service_of

    with tempfile.TemporaryDirectory() as folder:
        return Case(service_of(open_logs([_write_logs(name, seed, days, Path(folder))])))


def _experiment(name: str, seed: int, days: int) -> "Experiment":
    from nanoserve.experiment import CONFIG_CLASSES
    from nanoserve.specs.config import load

    path = REPOSITORY / "configs" / (f"{name}.gin" if name in (HEALTHY, TOGETHER) else f"lab/{name}.gin")
    overrides = (f"TraceSource.seed={seed}", f"TraceSource.end_s={days * DAY_S}")
    return load(path, CONFIG_CLASSES, "Experiment", overrides).value


def _write_logs(name: str, seed: int, days: int, folder: Path) -> Path:
    """Runs a config on the first days of its week and leaves its logs in a folder; returns the folder of the logs."""
    from experiments.run_service_logs import write_service_logs
    from nanoserve.replay import prepare
    from nanoserve.report.run_folder import LOGS, RunFolder

    replay = prepare(_experiment(name, seed, days))
    replay.run()
    written = RunFolder(folder, name, str(seed))
    write_service_logs(written, replay, replay.records())
    return written.path / LOGS


if __name__ == "__main__":
    sys.exit(main(sys.argv))
