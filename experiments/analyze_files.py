"""The work of analyze.py: logs are opened and examined, and the files are written; progress is shown."""

import dataclasses
import importlib
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from nanoserve.analysis.failures.cause import Cause
from nanoserve.analysis.finding import Finding
from nanoserve.analysis.laboratory import STAGES, examine
from nanoserve.analysis.logs.join import join
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.analysis.logs.read import open_logs
from nanoserve.analysis.pages.content import Page, as_json
from nanoserve.analysis.pages.html import render_html
from nanoserve.analysis.pages.markdown import render_markdown
from nanoserve.analysis.pages.plots import DRAWINGS, draw_all
from nanoserve.analysis.usage.blocks import chips_of
from nanoserve.experiment import Experiment
from nanoserve.report.progress import Progress
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.parquet import write_parquet
from nanoserve.trace.types import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What there is to write.

    Attributes:
      out: the folder. name: of the logs. run: the number of the run that wrote them; empty where it was none.
      joined: the logs. findings: in the order of the reasoning.
      named: the causes that the logs name.
      config: the recommended one; None where none was asked for or found. requests: those that it replays.
      notes: what was assumed to replay them.
    """

    out: Path
    name: str
    run: str
    joined: Joined
    findings: Sequence[Finding]
    named: Sequence[Cause] = ()
    config: str | None = None
    requests: Trace | None = None
    notes: tuple[str, ...] = ()


def opened(logs: Sequence[str], **how: Any) -> Joined:
    """Reads and joins the logs; `how` is as for `open_logs`."""
    with Progress(2, "logs") as progress:
        read = open_logs(logs, **how)
        progress.update(1, step="joined")
        return join(read)


def examined(joined: Joined, out: Path, name: str, run: str, baseline: Experiment | None = None) -> Report:
    """Asks every question, and shows which one is next.

    Args:
      joined, out, name, run: as in `Report`. baseline: what ran, for the price of its steps; None where nobody says.
    """
    with Progress(STAGES, "questions") as progress:
        asked = iter(range(1, STAGES + 1))
        step_s = None if baseline is None else chips_of(baseline).step_s
        answers = examine(joined, lambda what: progress.update(next(asked), question=what), step_s)
    return Report(out=out, name=name, run=run, joined=joined, findings=answers.findings, named=answers.named)


def drawing_helper() -> ProcessPoolExecutor:
    """A second process that draws; it gets ready while logs are read, so that its start costs nothing."""
    helper = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    for module in ("matplotlib.figure", "matplotlib.backends.backend_svg", draw_all.__module__):
        helper.submit(importlib.import_module, module)
    return helper


def written(report: Report, command: str, helper: Executor) -> list[Path]:
    """Writes the files; returns their paths.

    Args:
      report: what. command: how it was made. helper: draws a part of the plots.

    Raises:
      ConfigError: the folder cannot be written.
    """
    page = _page(report, command)
    with Progress(len(DRAWINGS), "plots") as progress:
        plots = draw_all(page.findings, lambda done, key: progress.update(done, plot=key), helper)
    texts: Mapping[str, str] = {
        "report.html": render_html(page, plots),
        "report.md": render_markdown(page),
        "findings.json": json.dumps(as_json(page), indent=1, allow_nan=False) + "\n",
        **({"recommended.gin": report.config} if report.config else {}),
    }
    try:
        report.out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (report.out / name).write_text(text)
        if report.requests is not None:
            write_parquet(report.requests, report.out / "requests.parquet")
    except OSError as error:
        raise ConfigError(f"--out={report.out}: {error.strerror}. Name a folder that can be written") from error
    names = [*texts, *(["requests.parquet"] if report.requests is not None else [])]
    return [report.out / name for name in names]


def _page(report: Report, command: str) -> Page:
    joined = report.joined
    first, last = joined.take("time_s")["time_s"].to_numpy()[[0, -1]] if joined.rows else (0.0, 0.0)
    began = f"{joined.start:%A %-d %B %Y, %H:%M %Z}" if joined.logs.dated else "an unknown day"
    scope = f"{joined.rows:,} requests over {(last - first) / 3600:,.1f} hours from {began}."
    return Page(
        title=report.name,
        scope=(scope, *([f"Run {report.run}."] if report.run else [])),
        findings=report.findings,
        notes=(*joined.notes, *report.notes),
        config=report.config or "",
        command=command,
    )
