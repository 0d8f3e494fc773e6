"""What `run.py --compare_executors` adds to a real run: its programs timed around it, its simulation laid beside it.

The simulation is of the same trace, scheduler and pool, and its steps cost what the programs took when they were timed
(`nanoserve.executors.probe`), before the run and after it, because a shared machine's speed drifts in between by more
than a price is off. Requests stop where they really stopped. Files: `comparison.json`, `comparison.png`, and
the simulated run's two tables.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nanoserve.engine.types import FinishReason, to_seconds
from nanoserve.report.run_folder import RunFolder
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from nanoserve.replay import Replay
    from nanoserve.roofline.counts import StepCounts
    from nanoserve.roofline.program_pricing import Measured, ProgramPricer


class Alone:
    """A run by itself: nothing before it, nothing after."""

    def check(self, replay: "Replay") -> None:
        """Any run will do."""

    def before(self, replay: "Replay") -> None:
        """Nothing to measure."""

    def after(self, replay: "Replay", folder: RunFolder) -> None:
        """Nothing to compare."""


class Compared(Alone):
    """A real run with its simulation."""

    def __init__(self):
        """Knows no times yet."""
        self._before: list[Measured] = []

    def check(self, replay: "Replay") -> None:
        """Refuses a run that is not executed.

        Raises:
          ConfigError: it would be simulated; says why.
        """
        if replay.jax_executor is None:
            raise ConfigError(
                f"--compare_executors lays a real run beside its simulation, and this one is {replay.choice.line}. "
                "Choose a config whose chips are here, such as --config=smollm2_cpu"
            )

    def before(self, replay: "Replay") -> None:
        """Times the programs of a run that is warmed up, showing progress."""
        self._before = _timed(replay)

    def after(self, replay: "Replay", folder: RunFolder) -> None:
        """Times them again, simulates the run, prints both beside each other, and writes the files.

        Raises:
          CapacityError: the folder cannot be written.
        """
        from nanoserve.roofline.program_pricing import ProgramPricer, program_times

        both = zip(self._before, _timed(replay), strict=True)
        measured = [dataclasses.replace(a, seconds=(a.seconds + b.seconds) / 2) for a, b in both]
        _compare(replay, ProgramPricer(program_times(measured)), folder)


def _timed(replay: "Replay") -> "list[Measured]":
    from nanoserve.executors import probe
    from nanoserve.report.progress import Progress

    executor, page_tokens = replay.jax_executor, replay.experiment.engine.page_tokens
    if executor is None:
        raise ValueError("nothing to time: `check` refuses a run that is not executed")
    measured = []
    with Progress(probe.ROUNDS, "rounds of timing") as progress:
        rounds = probe.measure(executor, page_tokens, replay.engine.scheduler.pool.num_pages)
        for done, measured in enumerate(rounds, start=1):
            progress.update(done, settings=len(measured))
    return measured


def _compare(replay: "Replay", pricer: "ProgramPricer", folder: RunFolder) -> None:
    from nanoserve.executors.program_executor import ProgramExecutor
    from nanoserve.replay import simulated_twin
    from nanoserve.report import comparison as tables

    real = replay.records()
    twin = simulated_twin(replay, ProgramExecutor(pricer, _stops(real.requests)))
    twin.run()
    simulated = twin.records()
    priced_s = np.array([to_seconds(pricer.plan_ticks(counts)) for counts in _plan_counts(real.steps)])
    found = tables.compare(real.steps, priced_s, real.requests, simulated.requests)
    print("\n".join(tables.lines(found)))
    with tempfile.TemporaryDirectory() as scratch:
        plot, name = Path(scratch) / "comparison.png", replay.experiment.name
        tables.save_plot(str(plot), name, found, real.steps, priced_s, real.requests, simulated.requests)
        programs = [{**program._asdict(), **time._asdict()} for program, time in pricer.times.items()]
        figures = {
            "calibrated_by": "timing the run's programs before it and after it",
            "programs": programs,
            **found.as_dict(),
        }
        folder.write_comparison(json.dumps(figures, indent=1), plot.read_bytes(), simulated.requests, simulated.steps)


def _stops(requests: "pl.DataFrame") -> dict[int, int]:
    """Output tokens of the requests that stopped before their limit."""
    stopped = requests.filter(requests["finish_reason"] == FinishReason.STOP.value)
    return dict(zip(stopped["request"].to_list(), stopped["output_tokens"].to_list(), strict=True))


def _plan_counts(steps: "pl.DataFrame") -> "Iterator[StepCounts]":
    from nanoserve.roofline.counts import StepCounts

    names = [field.name for field in dataclasses.fields(StepCounts)]
    return (StepCounts(**row) for row in steps.select(names).iter_rows(named=True))
