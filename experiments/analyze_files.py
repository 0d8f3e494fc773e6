"""The work of analyze.py: logs are opened and examined, a config is found, the files are written; progress is shown."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.laboratory import STAGES, examine
from nanoserve.analysis.logs.join import join
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.analysis.logs.read import open_logs
from nanoserve.analysis.pages.content import Page, as_json
from nanoserve.analysis.pages.html import render_html
from nanoserve.analysis.pages.markdown import render_markdown
from nanoserve.analysis.pages.plots import DRAWINGS, draw_all
from nanoserve.analysis.recommend.recommendation import recommend
from nanoserve.analysis.recommend.workload import COLUMNS, Prefixes, workload
from nanoserve.experiment import Experiment
from nanoserve.report.progress import Progress
from nanoserve.specs.errors import ConfigError, TraceError
from nanoserve.trace.parquet import write_parquet
from nanoserve.trace.source import TraceSource
from nanoserve.trace.types import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What there is to write.

    Attributes:
      out: the folder. name: of the logs. joined: the logs. findings: in the order of the reasoning.
      config: the recommended one; None where none was asked for or found. requests: those that it replays.
      notes: what was assumed to replay them.
    """

    out: Path
    name: str
    joined: Joined
    findings: Sequence[Finding]
    config: str | None = None
    requests: Trace | None = None
    notes: tuple[str, ...] = ()


def opened(logs: Sequence[str], **how: Any) -> Joined:
    """Reads and joins the logs; `how` is as for `open_logs`."""
    with Progress(2, "logs") as progress:
        read = open_logs(logs, **how)
        progress.update(1, step="joined")
        return join(read)


def examined(joined: Joined) -> list[Finding]:
    """Asks every question, and shows which one is next."""
    with Progress(STAGES, "questions") as progress:
        asked = iter(range(1, STAGES + 1))
        return examine(joined, lambda what: progress.update(next(asked), question=what))


def recommended(report: Report, baseline: Experiment) -> Report:
    """A report with the config that follows, or with the reason why none can."""
    joined = report.joined
    try:
        work = workload(
            joined.take(*(name for name in COLUMNS if joined.has(name))),
            name=report.name,
            block_tokens=joined.block_tokens,
            prefixes=_prefixes(joined),
            seed=baseline.seed,
        )
        with _Counting("replays") as told:
            found = recommend(work.trace, baseline, joined.start, report.findings, dated=joined.logs.dated, told=told)
    except TraceError as error:
        missing = not_computed("recommend.values", "A recommended config", str(error))
        return dataclasses.replace(report, findings=[*report.findings, missing])
    replayed = TraceSource(path=str(report.out / "requests.parquet"))
    experiment = dataclasses.replace(found.experiment, name="recommended", trace=replayed)
    named = dataclasses.replace(found, experiment=experiment)
    return dataclasses.replace(
        report,
        findings=[*report.findings, *found.findings],
        config=named.text(f"Recommended for {report.name}. Lines below a reason were chosen by it."),
        requests=work.trace,
        notes=work.notes,
    )


class _Counting:
    """Shows how many replays were made, and what came of the last; how many there will be is not known."""

    def __init__(self, label: str):
        self._progress, self._done = Progress(0, label), 0

    def __enter__(self) -> "_Counting":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    def __call__(self, what: str) -> None:
        self._done += 1
        self._progress.update(self._done, last=what)


def _prefixes(joined: Joined) -> Prefixes | None:
    hashes, block_tokens = joined.logs.prefixes, joined.logs.prefix_block_tokens
    return None if hashes is None or block_tokens is None else Prefixes(hashes, block_tokens)


def written(report: Report, command: str) -> list[Path]:
    """Writes the files; returns their paths.

    Raises:
      ConfigError: the folder cannot be written.
    """
    page = _page(report, command)
    with Progress(len(DRAWINGS), "plots") as progress:
        plots = draw_all(page.findings, lambda done, key: progress.update(done, plot=key))
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
    return Page(
        title=report.name,
        scope=(f"{joined.rows:,} requests over {(last - first) / 3600:,.1f} hours from {began}.",),
        findings=report.findings,
        notes=(*joined.notes, *report.notes),
        config=report.config or "",
        command=command,
    )
