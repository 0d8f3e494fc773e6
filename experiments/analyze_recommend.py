"""What analyze.py --recommend adds to a report: named causes tested by replay, and the config that follows."""

import dataclasses
import itertools

from experiments.analyze_files import Report
from nanoserve.analysis.finding import not_computed
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.analysis.recommend.causes_tested import replayed
from nanoserve.analysis.recommend.recommendation import SEARCH_REQUESTS, recommend, replays_at_most
from nanoserve.analysis.recommend.stretches import busiest, split
from nanoserve.analysis.recommend.workload import COLUMNS, Prefixes, Workload, workload
from nanoserve.experiment import Experiment
from nanoserve.report.progress import Progress
from nanoserve.specs.errors import TraceError
from nanoserve.trace.slices import chosen
from nanoserve.trace.source import TraceSource
from nanoserve.trace.types import Trace


def recommended(report: Report, baseline: Experiment) -> Report:
    """A report with the causes tested and the config that follows, or with the reason why there is none."""
    try:
        work = _workload(report, baseline.seed)
        with Progress(replays_at_most(work.trace, baseline) + len(report.named), "replays, at most") as progress:
            made = itertools.count(1)

            def told(what: str) -> None:
                progress.update(next(made), last=what)

            tested = replayed(report.named, baseline, _busiest(work.trace), told)
            findings = [*report.findings, *tested]
            dated = report.joined.logs.dated
            found = recommend(work.trace, baseline, report.joined.start, findings, dated=dated, told=told)
    except TraceError as error:
        missing = not_computed("recommend.values", "A recommended config", str(error))
        return dataclasses.replace(report, findings=[*report.findings, missing])
    replayable = TraceSource(path=str(report.out / "requests.parquet"))
    experiment = dataclasses.replace(found.experiment, name="recommended", trace=replayable)
    named = dataclasses.replace(found, experiment=experiment)
    return dataclasses.replace(
        report,
        findings=[*findings, *found.findings],
        config=named.text(f"Recommended for {report.name}. A comment says why the line below it is what it is."),
        requests=work.trace,
        notes=work.notes,
    )


def _workload(report: Report, seed: int) -> Workload:
    joined = report.joined
    columns = joined.take(*(name for name in COLUMNS if joined.has(name)))
    prefixes = _prefixes(joined)
    return workload(columns, name=report.name, block_tokens=joined.block_tokens, prefixes=prefixes, seed=seed)


def _busiest(trace: Trace) -> Trace:
    """What causes are tested on: the busiest training time."""
    parts = split(trace.arrival_s)
    return chosen(trace, busiest(trace.arrival_s, parts.training, parts.stretch_s, SEARCH_REQUESTS))


def _prefixes(joined: Joined) -> Prefixes | None:
    hashes, block_tokens = joined.logs.prefixes, joined.logs.prefix_block_tokens
    return None if hashes is None or block_tokens is None else Prefixes(hashes, block_tokens)
