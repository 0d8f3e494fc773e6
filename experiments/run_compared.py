"""What `run.py --compare_executors` adds to a real run: its programs timed beside it, its simulation laid beside it.

The simulation is of the same trace, scheduler and pool, and its steps cost what the programs took when they were timed
(`nanoserve.executors.probe`): each once before the run, and again after each plan that it runs, while the run's clock
stands still. Requests stop where they really stopped. Files: `comparison.json`, `comparison.png`, and the simulated
run's two tables.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nanoserve.engine.pages import PagePool
from nanoserve.engine.types import FinishReason, to_seconds
from nanoserve.report.run_folder import RunFolder
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from nanoserve.executors.probe import Prober
    from nanoserve.replay import Replay
    from nanoserve.roofline.counts import StepCounts
    from nanoserve.roofline.profiled import Profile
    from nanoserve.roofline.program_pricing import ProgramPricer


class Alone:
    """A run by itself: nothing before it, nothing after.

    Attributes:
      profile: what the report says of where a step's time went; None says nothing.
    """

    profile: "Profile | None" = None

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
        self._prober: Prober | None = None

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
        if replay.experiment.snapshots.interval_s is not None:
            raise ConfigError(
                "--compare_executors: a run that is timed keeps no snapshots. Leave Snapshots.interval_s out"
            )
        config = replay.engine.scheduler.config
        for field, plain in (("draft", "none"), ("batch_invariant", False), ("allocator", "paged")):
            if getattr(config, field) != plain:
                raise ConfigError(
                    f"--compare_executors times the programs of plain steps on free pages: Engine.{field} = "
                    f"{getattr(config, field)!r} cannot be compared. Leave it out"
                )

    def before(self, replay: "Replay") -> None:
        """Times every program of a run that is warmed up, showing progress, and sees to it that the run times them."""
        from nanoserve.executors.probe import BesideRun, Prober
        from nanoserve.report.progress import Progress

        executor, engine = replay.jax_executor, replay.engine
        pool = engine.scheduler.pool
        if executor is None:
            raise ValueError("nothing to time: `check` refuses a run that is not executed")
        if not isinstance(pool, PagePool):
            raise ValueError("nothing to time on: `check` refuses runs without pages")
        prober = self._prober = Prober(executor, replay.experiment.engine.page_tokens, lambda: pool.free_pages)
        with Progress(prober.calls, "timing") as progress:
            for done, program in enumerate(prober.all_once(), start=1):
                progress.update(done, program=str(tuple(program)))

        engine.executor = BesideRun(engine.executor, prober, lambda: engine.clock)

    def after(self, replay: "Replay", folder: RunFolder) -> None:
        """Simulates the run, prints both beside each other, and writes the files.

        Raises:
          CapacityError: the folder cannot be written.
        """
        from nanoserve.roofline.program_pricing import ProgramPricer, program_times

        if self._prober is None:
            raise ValueError("nothing was timed: `before` comes first")
        _compare(replay, ProgramPricer(program_times(self._prober.measured())), folder)


def _compare(replay: "Replay", pricer: "ProgramPricer", folder: RunFolder) -> None:
    from nanoserve.executors.roofline_executor import RooflineExecutor
    from nanoserve.executors.stopping import StoppingExecutor
    from nanoserve.replay import simulated_twin
    from nanoserve.report import comparison as tables

    real = replay.records()
    pool = replay.members[0].pool
    priced = RooflineExecutor(pool.model, pool.cluster, pool.precision, pool.calibration, pricer)
    twin = simulated_twin(replay, StoppingExecutor(priced, _stops(real.requests)))
    twin.run()
    simulated = twin.records()
    priced_s = np.array([to_seconds(pricer.plan_ticks(counts)) for counts in plan_counts(real.steps)])
    found = tables.compare(real.steps, priced_s, real.requests, simulated.requests)
    print("\n".join(tables.lines(found)))
    with tempfile.TemporaryDirectory() as scratch:
        plot, name = Path(scratch) / "comparison.png", replay.experiment.name
        tables.save_plot(str(plot), name, found, real.steps, priced_s, real.requests, simulated.requests)
        programs = [{**program._asdict(), **time._asdict()} for program, time in pricer.times.items()]
        figures = {
            "calibrated_by": "timing the run's programs, after each of its plans",
            "programs": programs,
            **found.as_dict(),
        }
        folder.write_comparison(json.dumps(figures, indent=1), plot.read_bytes(), simulated.requests, simulated.steps)


def _stops(requests: "pl.DataFrame") -> dict[int, int]:
    """Output tokens of the requests that stopped before their limit."""
    stopped = requests.filter(requests["finish_reason"] == FinishReason.STOP.value)
    return dict(zip(stopped["request"].to_list(), stopped["output_tokens"].to_list(), strict=True))


def plan_counts(steps: "pl.DataFrame") -> "Iterator[StepCounts]":
    """What each plan of a run asked for, in order."""
    from nanoserve.roofline.counts import StepCounts

    names = [field.name for field in dataclasses.fields(StepCounts)]
    return (StepCounts(**row) for row in steps.select(names).iter_rows(named=True))
