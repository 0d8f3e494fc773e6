"""Nothing compiles once a run has begun: every shape a plan can need was warmed up."""

import logging

import jax
import numpy as np

from nanoserve.engine.config import EngineConfig
from nanoserve.executors.jax_build import ladders_for
from tests.executors.factories import jax_executor, mixed_trace, wall_engine

CONFIG = EngineConfig(
    max_seqs=4, max_step_tokens=32, page_tokens=4, free_page_watermark=0.0, max_horizon_steps=8, max_context_tokens=128
)
PAGES = 40  # four sequences of up to 88 tokens want 88: preemption is certain


def test_nothing_compiles_after_warm_up(caplog):
    """1,000 mixed requests; a miss is reported with the name and the shapes of what was compiled."""
    trace = mixed_trace(1000, seed=3, rate_rps=200.0)
    executor = jax_executor(trace, CONFIG, PAGES, ladders=ladders_for(trace, CONFIG))
    programs = list(executor.warm_up())
    assert len(programs) == executor.ladders.programs
    engine = wall_engine(trace, CONFIG, PAGES, executor)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        engine.run()
    culprits = [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()]
    assert not culprits, "compiled after warm-up:\n" + "\n".join(culprits)
    columns = engine.log.request_columns()
    assert columns["finish_reason"] == ["length"] * 1000
    assert columns["output_tokens"] == trace.output_tokens.tolist()
    assert {"prefill", "decode", "mixed"} <= set(engine.log.step_columns(PAGES)["kind"])


def test_the_compile_watch_sees_a_new_shape(caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jax.jit(lambda x: x * 3 + 1)(np.zeros(17))
    assert any("ompil" in record.getMessage() for record in caplog.records)
