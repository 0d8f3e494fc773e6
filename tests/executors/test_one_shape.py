"""Batch invariance: a request's bits are the same alone and among others, whatever the schedule."""

import dataclasses

import numpy as np
import pytest

from nanoserve.engine.config import EngineConfig
from nanoserve.executors.jax_build import ladders_for
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.specs.errors import ConfigError
from tests.executors.factories import TINY, jax_executor, mixed_trace, virtual_engine

CONFIG = EngineConfig(
    max_seqs=8, max_step_tokens=24, page_tokens=4, max_context_tokens=96, free_page_watermark=0.0, batch_invariant=True
)
MOST_TOKENS = 96
PAGES = 200
TRACE = mixed_trace(12, seed=2, rate_rps=1e6)


def executor_of(config: EngineConfig) -> JaxExecutor:
    """A float32 model with ladders for the trace."""
    return jax_executor(TRACE, config, PAGES, ladders=ladders_for(TRACE, config, MOST_TOKENS), temperature=0.7)


def logprobs_of(executor: JaxExecutor, config: EngineConfig, rows: list[int] | None = None) -> dict[int, list[float]]:
    """Log-probabilities of every generated token, of the whole trace or with only some requests of it sent."""
    book = executor.book
    executor.arrays.forget_tables()  # another run's requests have the same numbers
    engine = virtual_engine(TRACE, config, PAGES, executor, TINY)
    if rows is not None:
        refuse = set(range(len(TRACE))) - set(rows)
        add = engine.scheduler.add
        engine.scheduler.add = lambda request, *rest: request.index not in refuse and add(request, *rest)
    engine.run()
    found = {index: logprobs for index, logprobs in book.logprobs.items() if rows is None or index in rows}
    book.__init__(book._prompt_of)
    return found


def differing(found: dict[int, list[float]], other: dict[int, list[float]]) -> int:
    """Requests whose log-probabilities are not the same bit for bit."""
    return sum(np.asarray(found[index]).tobytes() != np.asarray(other[index]).tobytes() for index in found)


@pytest.fixture(scope="module")
def invariant() -> JaxExecutor:
    return executor_of(CONFIG)


def test_a_request_alone_has_the_bits_it_has_among_others(invariant):
    together = logprobs_of(invariant, CONFIG)
    assert len(together) == len(TRACE)
    for row in range(0, len(TRACE), 3):
        assert differing(logprobs_of(invariant, CONFIG, [row]), together) == 0


def test_the_schedule_changes_no_bit(invariant):
    together = logprobs_of(invariant, CONFIG)
    for turned in ({"batching": "prefill_first"}, {"policy": "shortest_first"}, {"prefill_chunk_tokens": 7}):
        assert differing(logprobs_of(invariant, dataclasses.replace(CONFIG, **turned)), together) == 0


def test_without_the_switch_neighbours_do_change_bits():
    config = dataclasses.replace(CONFIG, batch_invariant=False, max_horizon_steps=1)
    ladders = dataclasses.replace(ladders_for(TRACE, config, MOST_TOKENS), decode_rows=(1, 8), prefill_tokens=(24,))
    executor = jax_executor(TRACE, config, PAGES, ladders=ladders, temperature=0.7)
    together = logprobs_of(executor, config)
    alone = {row: logprobs_of(executor, config, [row])[row] for row in range(4)}
    assert differing(alone, together) > 0


def test_one_program_is_compiled_and_all_of_its_padding_is_counted(invariant):
    assert invariant.calls.programs == 1
    engine = virtual_engine(TRACE, CONFIG, PAGES, invariant, TINY)
    engine.run()
    steps = engine.log.step_columns(PAGES)
    assert set(steps["steps"]) == {1}
    assert set(steps["executed_tokens"]) == {CONFIG.max_seqs + CONFIG.max_step_tokens}


def test_drafts_are_refused():
    with pytest.raises(ConfigError, match="no room"):
        dataclasses.replace(CONFIG, draft="ngram", max_step_tokens=64)
