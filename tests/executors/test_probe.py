"""Timing the programs of a real executor: every one of them, nothing compiled, and no trace left for the run."""

import logging
import time
from collections.abc import Sequence

import jax
import pytest

from nanoserve.building import build_engine
from nanoserve.engine.clock import VirtualClock, WallClock
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.types import TICKS_PER_S, FinishReason, to_ticks
from nanoserve.executors import probe
from nanoserve.executors.jax_build import ladders_for
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.executors.stopping import StoppingExecutor
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.program_pricing import Program, ProgramPricer, ProgramTime, program_times
from nanoserve.trace.load import OpenLoop
from tests.executors.factories import (
    F32,
    ONE_H100,
    TINY,
    coarse_ladders,
    jax_executor,
    mixed_trace,
    virtual_engine,
    wall_engine,
)

CONFIG = EngineConfig(
    max_seqs=3, max_step_tokens=16, page_tokens=4, free_page_watermark=0.0, max_horizon_steps=4, max_context_tokens=128
)
PAGES = 60
TRACE = mixed_trace(8, seed=4, rate_rps=1e6)


def all_programs(executor: JaxExecutor) -> set[Program]:
    """What `warm_up` compiles."""
    rows, tokens = executor.ladders.decode_rows, executor.ladders.prefill_tokens
    decode = {Program(each, 0, loops) for each in rows for loops in (False, True)}
    return decode | {Program(row, token) for row in (0, *executor.ladders.mixed_rows) for token in tokens}


@pytest.fixture(scope="module")
def executor() -> JaxExecutor:
    warmed = jax_executor(TRACE, CONFIG, PAGES, ladders=coarse_ladders(TRACE, CONFIG), temperature=0.8)
    list(warmed.warm_up())
    return warmed


def timed(executor: JaxExecutor) -> probe.Prober:
    prober = probe.Prober(executor, CONFIG.page_tokens, lambda: range(PAGES))
    assert len(list(prober.all_once())) == prober.calls
    return prober


def test_every_program_is_timed_and_nothing_compiles(executor, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        prober = timed(executor)
    measured = prober.measured()
    assert not [record for record in caplog.records if "ompil" in record.getMessage()]
    times = program_times(measured)
    assert times.keys() == all_programs(executor)
    assert all(part >= 0 for time in times.values() for part in time) and any(map(any, times.values()))
    depths = {(m.decode_kv_tokens, m.prefill_kv_tokens) for m in measured if m.program == Program(3, loops=True)}
    assert len(depths) == 3  # two steps, the most steps, and the most steps with much behind them


def test_a_run_after_it_gives_the_tokens_of_a_run_without_it(executor):
    fresh = jax_executor(TRACE, CONFIG, PAGES, ladders=coarse_ladders(TRACE, CONFIG), temperature=0.8)
    timed(executor)
    for runner in (executor, fresh):
        virtual_engine(TRACE, CONFIG, PAGES, runner).run()
    assert executor.book.outputs == fresh.book.outputs and len(fresh.book.outputs) == len(TRACE)


def test_timing_beside_a_run_changes_none_of_its_tokens(executor):
    alone = jax_executor(TRACE, CONFIG, PAGES, ladders=coarse_ladders(TRACE, CONFIG), temperature=0.8)
    virtual_engine(TRACE, CONFIG, PAGES, alone).run()
    timed_runner = jax_executor(TRACE, CONFIG, PAGES, ladders=coarse_ladders(TRACE, CONFIG), temperature=0.8)
    list(timed_runner.warm_up())
    engine, clock, asked = wall_engine(TRACE, CONFIG, PAGES, timed_runner), WallClock(), []

    def free_pages() -> Sequence[int]:
        asked.append(len(engine.scheduler.pool.free_pages))
        return engine.scheduler.pool.free_pages

    prober = probe.Prober(timed_runner, CONFIG.page_tokens, free_pages)
    list(prober.all_once())
    engine.clock, engine.executor = clock, probe.BesideRun(timed_runner, prober, lambda: clock)
    engine.run()
    assert timed_runner.book.outputs == alone.book.outputs and len(alone.book.outputs) == len(TRACE)
    assert len(asked) >= prober.calls + engine.log.plan_count()
    assert min(asked) < PAGES  # pages were in use meanwhile


def test_a_stopped_clock_stands_still():
    clock = WallClock()
    with clock.stopped():
        before = clock.now()
        time.sleep(0.05)
    assert clock.now() - before < to_ticks(0.04)


def test_all_ladders_of_a_trace_are_covered():
    config = EngineConfig(max_seqs=8, max_step_tokens=64, page_tokens=4, max_horizon_steps=1, max_context_tokens=128)
    executor = jax_executor(TRACE, config, PAGES, ladders=ladders_for(TRACE, config))
    timed = {setting.program for setting in probe.settings(executor, config.page_tokens)}
    assert timed == {program for program in all_programs(executor) if not program.loops}


def test_a_simulation_ends_requests_where_they_are_said_to_stop():
    steady = dict.fromkeys([Program(3), Program(3, loops=True), Program(0, 16), Program(3, 16)], ProgramTime(0.0, 0.01))
    stops = {index: 1 + int(tokens) // 2 for index, tokens in enumerate(TRACE.output_tokens) if index % 2}
    pricer = ProgramPricer(steady, ticks_per_s=TICKS_PER_S)
    constants = constants_for(ONE_H100.chip, F32, "calibrated")
    simulated = StoppingExecutor(RooflineExecutor(TINY, ONE_H100, F32, constants, pricer), stops)
    engine = build_engine(CONFIG, TINY, TRACE, PAGES, simulated, VirtualClock(), OpenLoop(TRACE, to_ticks))
    engine.run()
    columns = engine.log.request_columns()
    wanted = [stops.get(index, int(tokens)) for index, tokens in enumerate(TRACE.output_tokens)]
    assert list(columns["output_tokens"]) == wanted
    early = [FinishReason.STOP if index in stops else FinishReason.LENGTH for index in range(len(TRACE))]
    assert list(columns["finish_reason"]) == [reason.value for reason in early]
