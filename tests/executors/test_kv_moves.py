"""Pages that are shared, cached and moved: the tokens are those of a run without any of it, and bits stay bits."""

import dataclasses

import jax
import numpy as np
import pytest

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.types import Move, MoveKind
from nanoserve.executors import host_pages
from nanoserve.executors.host_pages import HostPages
from nanoserve.model.step import DeviceState, init_state
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model
from nanoserve.trace.readers import read_trace
from nanoserve.trace.slices import head
from nanoserve.trace.types import Trace
from tests.executors.factories import TINY, jax_executor, lengths_trace, virtual_engine

PAGES = 40  # six sequences of up to 90 tokens want 138 pages of 4
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01}


def config_of(**knobs) -> EngineConfig:
    defaults = {"max_seqs": 6, "max_step_tokens": 32, "page_tokens": 4, "max_horizon_steps": 8}
    return EngineConfig(**{**defaults, "free_page_watermark": 0.0, "max_context_tokens": 128} | knobs)


def shared_prompts(requests: int, seed: int) -> tuple[Trace, list[list[int]]]:
    """Prompts of three families, each request leaving its family's text at a place of its own."""
    rng = np.random.default_rng(seed)
    families = rng.integers(TINY.vocab, size=(3, 60))
    prompts = []
    for index in range(requests):
        shared, own = int(rng.integers(0, 50)), int(rng.integers(1, 12))
        prompts.append([*families[index % 3, :shared].tolist(), *rng.integers(TINY.vocab, size=own).tolist()])
    arrivals = np.cumsum(rng.exponential(2e-5, requests))
    return lengths_trace([len(prompt) for prompt in prompts], rng.integers(1, 30, requests), arrivals), prompts


TRACE, PROMPTS = shared_prompts(16, seed=5)


def run(config: EngineConfig, pages: int, trace: Trace = TRACE, prompts=PROMPTS):
    executor = jax_executor(trace, config, pages, prompts=prompts, **SAMPLING)
    engine = virtual_engine(trace, config, pages, executor)
    engine.run()
    assert set(engine.log.request_columns()["finish_reason"]) == {"length"}
    assert engine.scheduler.pool.used_count == engine.scheduler.memory.host_pages_used == 0
    return dict(executor.book.outputs), engine.log.step_columns(pages)


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, list[int]]:
    """Sampled tokens of requests that ran one at a time on a pool without end, nothing shared."""
    return run(config_of(max_seqs=1, max_step_tokens=64, page_tokens=16, max_horizon_steps=1), 100)[0]


@pytest.mark.parametrize(
    "knobs",
    [
        {"prefix_cache": "lru"},
        {"prefix_cache": "cost"},
        {"preemption": "swap"},
        {"preemption": "swap", "host_pages": 12, "batching": "prefill_first"},
        {"prefix_cache": "lru", "preemption": "swap", "victim": "least_progress"},
        {"prefix_cache": "cost", "preemption": "cheaper", "policy": "shortest_first"},
        {"prefix_cache": "lru", "preemption": "swap", "batching": "static", "static_timeout_s": 1e-6},
    ],
    ids=str,
)
def test_sampled_tokens_do_not_depend_on_where_kv_was(undisturbed, knobs):
    config = config_of(**knobs)
    outputs, steps = run(config, PAGES)
    assert outputs == undisturbed
    assert (steps["prefix_hit_tokens"].sum() > 0) == (config.prefix_cache != "off")
    assert steps["swapped_in_tokens"].sum() == steps["swapped_out_tokens"].sum()
    assert (steps["swapped_in_tokens"].sum() > 0) == (config.preemption != "recompute")


def test_a_later_turn_finds_what_the_turn_before_it_generated():
    trace = lengths_trace([9, 32], [20, 5], [0.0, 1.0])
    first = [int(token) for token in np.random.default_rng(1).integers(TINY.vocab, size=9)]
    answer = run(config_of(), PAGES, trace, [first, [3] * 32])[0][0]
    second = [*first, *answer, 7, 7, 7]
    outputs, steps = run(config_of(prefix_cache="lru"), PAGES, trace, [first, second])
    assert outputs == run(config_of(), PAGES, trace, [first, second])[0]
    assert steps["prefix_lookup_tokens"].sum() == 9 + 32
    assert steps["prefix_hit_tokens"].sum() == 28  # 9 + 20 tokens, of which the last was never written to a page


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_pages_come_back_bit_for_bit_to_other_pages(dtype, monkeypatch):
    monkeypatch.setattr(host_pages, "MOST_PAGES", 4)  # so that a sequence travels in several pieces
    holder = _Holder(_random_state(dtype))
    pages, there = HostPages(holder, table_pages=16), [3, 0, 7, 9, 12, 5]
    list(pages.warm_up())
    before = jax.device_get(holder.state.pool)
    pages.move([Move(MoveKind.OUT, 5, 1, there, 23)], newest=lambda index: 0)
    spoiled = jax.tree.map(lambda leaf: leaf.at[:, np.array(there)].set(1), holder.state.pool)
    holder.state = dataclasses.replace(holder.state, pool=spoiled)
    here = [1, 2, 4, 6, 8, 10]
    pages.move([Move(MoveKind.IN, 5, 2, here, 23)], newest=lambda index: 40 + index)
    after = jax.device_get(holder.state.pool)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[:, there], new[:, here])
        untouched = [page for page in range(16) if page not in there + here]
        np.testing.assert_array_equal(old[:, untouched], new[:, untouched])
    assert np.asarray(holder.state.last_tokens).tolist() == [0, 0, 45, 0, 0]


def test_warming_up_changes_no_page_and_after_it_nothing_compiles():
    holder = _Holder(_random_state("float32"))
    before = jax.device_get(holder.state.pool)
    pages = HostPages(holder, table_pages=8)
    assert len(list(pages.warm_up())) == pages.programs
    np.testing.assert_array_equal(before.pages, jax.device_get(holder.state.pool).pages)
    with jax.log_compiles(), _NoCompilation():
        for count in range(1, 9):
            pages.move([Move(MoveKind.OUT, 0, 0, list(range(count)), 4 * count)], newest=lambda index: 0)
            pages.move([Move(MoveKind.IN, 0, 1, list(range(count)), 4 * count)], newest=lambda index: 0)


def test_a_request_that_leaves_while_it_is_swapped_out_leaves_nothing_on_the_host():
    pages = HostPages(_Holder(_random_state("float32")), table_pages=8)
    pages.move([Move(MoveKind.OUT, 3, 0, [1, 2], 8)], newest=lambda index: 0)
    pages.release(3)
    with pytest.raises(KeyError):
        pages.move([Move(MoveKind.IN, 3, 0, [1, 2], 8)], newest=lambda index: 0)


def test_a_prefix_cache_wants_to_know_more_than_lengths():
    with pytest.raises(ConfigError, match="neither prefix hashes nor token ids"):
        virtual_engine(TRACE, config_of(prefix_cache="lru"), PAGES, None)


@pytest.mark.parametrize(("page_tokens", "requests"), [(512, 12_031), (48, 1_000)])
def test_an_engine_serves_what_the_blocks_of_mooncake_have_in_common(shared, page_tokens, requests):
    """Pages without end: whatever was prefilled before is found, as far as whole blocks say so, in any size of page."""
    trace = read_trace(str(shared / "traces" / "mooncake_conversation_trace.jsonl"))
    trace = head(trace, requests)
    hashes = trace.prefix_hashes
    assert hashes is not None
    config = EngineConfig(page_tokens=page_tokens, prefix_cache="lru", max_seqs=256, max_step_tokens=8192)
    engine = virtual_engine(trace, config, requests * 16_000 // page_tokens, None, model("llama-3.1-8b"))
    engine.run()
    steps, seen, shared_tokens = engine.log.step_columns(1), set(), 0
    for ids in (hashes.row(row).tolist() for row in range(requests)):
        blocks = next((place for place, one in enumerate(ids) if one not in seen), len(ids))
        shared_tokens += blocks * 512 // page_tokens * page_tokens
        seen.update(ids)
    assert steps["prefix_hit_tokens"].sum() == pytest.approx(shared_tokens, rel=2e-3)  # some came at the same moment
    if requests == 12_031:
        assert steps["prefix_hit_tokens"].sum() / trace.prompt_tokens.sum() == pytest.approx(0.373, abs=0.0005)


@dataclasses.dataclass
class _Holder:
    state: DeviceState


class _NoCompilation:
    """Fails where XLA compiles something."""

    def __enter__(self):
        self._compiled = []
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._compiled.append(event)

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._heard)
        assert not self._compiled


def _random_state(dtype: str) -> DeviceState:
    state = init_state(TINY, pages=16, page_tokens=4, slots=4, dtype=dtype)
    rng = np.random.default_rng(0)
    pool = jax.tree.map(lambda leaf: jax.numpy.asarray(rng.integers(-9, 9, leaf.shape), leaf.dtype), state.pool)
    return dataclasses.replace(state, pool=pool)
