"""Executes an experiment, times its programs before and after, and simulates it: what `replay` records.

Nothing here needs a table library: a run's log is arrays already. The simulations pad rows and chunks as the run does,
so they differ from it in what steps cost and in nothing else.

Next: `replay_figures`, `nanoserve.replay`, `nanoserve.executors.probe`, `nanoserve.roofline.own_stack`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.bench.parts import Context
from experiments.bench.parts.replay_figures import BENCH, GOALS, PROGRAMS, Run, compared, described
from experiments.bench.results_file import Record
from nanoserve.engine.pages import PagePool
from nanoserve.engine.types import Kind, Plan, to_seconds
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.probe import Prober
from nanoserve.executors.roofline_executor import Padded, RooflineExecutor, in_buckets
from nanoserve.experiment import Experiment
from nanoserve.replay import Replay, prepare, simulated_twin
from nanoserve.report.metrics import Columns, with_latencies
from nanoserve.report.progress import Progress
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.own_stack import OwnStack, calibrate
from nanoserve.roofline.program_pricing import Measured, ProgramPricer, program_times

LONGEST_S = 240.0  # a run that is not done by then serves fewer requests than arrive


def run_and_simulate(experiment: Experiment, context: Context) -> Record:
    """Executes an experiment and simulates it twice.

    Raises:
      ConfigError, CapacityError: it cannot be executed here. TimeoutError: it takes longer than `LONGEST_S`.
    """
    replay = prepare(experiment)
    if replay.jax_executor is None:
        raise ValueError("the experiment asks for an execution, so it is executed or refused")
    own, begin_s = _own_stack(context), context.clock()
    _warm_up(replay)
    warmed_s = context.clock()
    prober = _prober(replay, replay.jax_executor)
    before = _timed(prober)
    real = _run(replay, context.clock)
    programs = ProgramPricer(program_times(_means(before, _timed(prober))))
    record = {
        "why": replay.choice.line,
        "attention": replay.attention,
        "programs": replay.programs,
        "warm_up_s": warmed_s - begin_s,
        "pages": replay.engine.scheduler.pool.num_pages,
        **described(real),
        "goals": dict(GOALS),
    }
    padded = _padding(replay.jax_executor)
    simulated = {BENCH: by_bench(replay, real, own, padded), PROGRAMS: _by_programs(replay, real, programs, padded)}
    return record | {"simulated": simulated}


def _warm_up(replay: Replay) -> None:
    with Progress(replay.programs, "compiling") as progress:
        for done, program in enumerate(replay.warm_up(), start=1):
            progress.update(done, program=program)


def _prober(replay: Replay, executor: JaxExecutor) -> Prober:
    pool = replay.engine.scheduler.pool
    if not isinstance(pool, PagePool):
        raise ValueError("programs are timed on free pages, and the experiment's allocator has none")
    return Prober(executor, replay.experiment.engine.page_tokens, lambda: pool.free_pages)


def _timed(prober: Prober) -> list[Measured]:
    """Every setting of every program, once."""
    for _ in prober.all_once():
        pass
    return prober.measured()


def _means(before: list[Measured], after: list[Measured]) -> list[Measured]:
    pairs = zip(before, after, strict=True)
    return [dataclasses.replace(first, seconds=(first.seconds + second.seconds) / 2) for first, second in pairs]


def _run(replay: Replay, clock: Callable[[], float]) -> Run:
    last_s = clock() + LONGEST_S
    replay.run(should_stop=lambda: clock() > last_s)
    run = left_behind(replay)
    if len(run.requests["request"]) < len(replay.trace) or not run.requests["completed"].all():
        done = int(run.requests["completed"].sum())
        raise TimeoutError(f"{done} of {len(replay.trace)} requests were done within {LONGEST_S:g} s")
    return run


def left_behind(replay: Replay) -> Run:
    """The log of a replay that has run."""
    engine = replay.engine
    requests = {name: np.array(values) for name, values in engine.log.request_columns().items()}
    return Run(engine.log.step_columns(engine.scheduler.pool.num_pages), with_latencies(requests))


def _own_stack(context: Context) -> OwnStack:
    """Fitted on the host, where JAX has it: the device's memory is the run's."""
    with jax.default_device(_host()):
        return calibrate(context.found, context.chip, source="this file")


def _host() -> Any:
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:  # JAX was told of the accelerator alone
        return None


def by_bench(replay: Replay, real: Run, own: OwnStack, padded: Padded) -> Record:
    """The simulation priced by the cost model.

    Args:
      replay: that was run, or is to be compared with `real`. real: what it left behind.
      own: constants, and what they were fitted to. padded: how plans are padded when they are executed.
    """
    pool, steps = replay.members[0].pool, 0 if own.steps is None else len(own.steps.steps)
    calibration = own.calibration(pool.cluster.chip, pool.precision)
    what = pool.model, pool.cluster, pool.precision, calibration
    operations = {f"{fit.group.kind} {fit.group.variant}": dict(fit.constants) for fit in own.fits}
    return {
        "calibrated_by": f"{len(operations)} kinds of operations and {steps} whole steps of this file; for the rest, "
        f"{own.file.base}",
        "operations": operations,
        "elementwise": None if own.steps is None else dict(own.steps.elementwise),
        "host": None if own.steps is None else dict(own.steps.host),
        "held_out_steps": dict(own.file.validation),
        "left_out": list(own.left_out),
        **_simulated(replay, real, RooflineExecutor(*what, padded=padded)),
    }


def _by_programs(replay: Replay, real: Run, pricer: ProgramPricer, padded: Padded) -> Record:
    pool = replay.members[0].pool
    what = pool.model, pool.cluster, pool.precision, pool.calibration
    programs = [{**program._asdict(), **time._asdict()} for program, time in pricer.times.items()]
    return {
        "calibrated_by": "the run's own programs, timed once before and once after it",
        "timed": programs,
        **_simulated(replay, real, RooflineExecutor(*what, pricer, padded)),
    }


def _simulated(replay: Replay, real: Run, executor: RooflineExecutor) -> Record:
    """The same scheduler on the same trace, with another idea of what a plan takes."""
    twin = simulated_twin(replay, executor)
    twin.run()
    plans = (to_seconds(executor.submit(plan).duration_ticks) for plan in _plans(real.steps))
    return compared(real, left_behind(twin), np.fromiter(plans, np.float64))


def _padding(executor: JaxExecutor) -> Padded:
    """What an executor's programs pad plans to."""
    ladders = executor.ladders
    return in_buckets(ladders.shape, ladders.prefill_rows)


def _plans(steps: Columns) -> Iterator[Plan]:
    """The plans of a run, as far as their price asks for them."""
    names = [field.name for field in dataclasses.fields(StepCounts)]
    counted = zip(*(steps[name].tolist() for name in names), strict=True)
    for number, (kind, values) in enumerate(zip(steps["kind"].tolist(), counted, strict=True)):
        counts = StepCounts(*values)
        yield Plan(step=number, kind=Kind(kind), horizon=counts.steps, counts=counts, rows=tuple)
