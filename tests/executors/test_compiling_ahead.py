"""Programs compiled ahead are those that run, each compiled once, and a run after them compiles nothing."""

import jax
import numpy as np
import pytest

from nanoserve.engine.config import EngineConfig
from tests.executors.factories import jax_executor, lengths_trace

COMPILED = "/jax/core/compile/backend_compile_duration"
TRACE = lengths_trace([5, 9, 3], [4, 7, 2], [0.0] * 3)
PAGES = 40


@pytest.fixture
def compiled():
    """The number of programs that JAX has compiled, as it grows."""
    seen = []

    def listen(event: str, _: float, **__) -> None:
        if event == COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("knobs", [{}, {"batch_invariant": True}, {"draft": "ngram"}])
def test_every_program_is_compiled_once(compiled, knobs):
    """Of shapes that no other test of this room has: JAX keeps what it compiled for them."""
    tokens = {"batch_invariant": 22, "draft": 23}.get(next(iter(knobs), ""), 21)
    config = EngineConfig(max_seqs=3, max_step_tokens=tokens, page_tokens=4, max_context_tokens=52, **knobs)
    executor = jax_executor(TRACE, config, PAGES, temperature=0.5)
    jax.block_until_ready(executor.state)
    compiled.clear()
    names = list(executor.warm_up())
    assert len(names) == executor.programs == len(set(names))
    assert len(compiled) == executor.programs
    list(executor.warm_up())
    assert len(compiled) == executor.programs


def test_a_program_that_does_not_compile_is_the_run_s_own_error():
    config = EngineConfig(max_seqs=3, max_step_tokens=17, page_tokens=4, max_context_tokens=48)
    executor = jax_executor(TRACE, config, PAGES)
    executor.params = executor.params.replace(final_norm=np.zeros(7, np.float32))
    with pytest.raises(ValueError, match="Incompatible shapes"):
        list(executor.warm_up())
