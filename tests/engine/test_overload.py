"""Far more work than the engine can do, in pools that hold almost nobody: it refuses, and never stands still."""

import itertools

import numpy as np
import pytest

from nanoserve.engine.types import FinishReason
from tests.engine.factories import FIXED_TICKS, TICKS_PER_TOKEN, Job, make_engine

SEQS, PAGE_TOKENS = 4, 4
REQUESTS = 300
OVERLOAD = 10
MOST_PLANS = 200_000  # a run that needs more has stopped making progress: it takes a few thousand
REASONS = {FinishReason.LENGTH.value, FinishReason.REFUSED.value}


def jobs(seed: int, longest_tokens: int) -> list[Job]:
    """Requests that arrive ten times as fast as they could be served one batch after another."""
    random = np.random.default_rng(seed)
    prompts = random.integers(1, longest_tokens + 1, REQUESTS)
    outputs = random.integers(1, 9, REQUESTS)
    ticks_per_request = int(np.mean(prompts * TICKS_PER_TOKEN + outputs * (FIXED_TICKS + TICKS_PER_TOKEN)) / SEQS)
    gaps = random.exponential(ticks_per_request / OVERLOAD, REQUESTS)
    arrivals = np.cumsum(gaps).astype(int).tolist()
    clients = random.integers(0, 3, REQUESTS).tolist()
    return [Job(*map(int, row)) for row in zip(arrivals, prompts, outputs, clients, strict=True)]


def settings() -> list[dict]:
    """Pools of one to three pages a sequence, crossed with what may preempt, share or guess."""
    pools = [{"num_pages": SEQS * pages} for pages in (1, 2, 3)]
    batchings = [{"batching": name} for name in ("mixed", "prefill_first", "static")]
    memory = [
        {},
        {"preemption": "swap"},
        {"preemption": "swap", "host_pages": 3, "prefix_cache": "lru"},
        {"preemption": "cheaper", "prefix_cache": "cost", "policy": "shortest_first"},
        {"prefix_cache": "lru", "draft": "ngram", "draft_tokens": 2},
        {"allocator": "contiguous", "policy": "fair_share"},
    ]
    return [{**a, **b, **c} for a, b, c in itertools.product(pools, batchings, memory)]


@pytest.mark.parametrize("limit", [None, 6], ids=["no_queue_limit", "queue_limit_6"])
@pytest.mark.parametrize("knobs", settings(), ids=lambda knobs: "-".join(str(value) for value in knobs.values()))
def test_overload_is_refused_with_a_reason_and_whoever_is_admitted_finishes(knobs: dict, limit: int | None):
    longest_tokens = 2 * knobs["num_pages"] * PAGE_TOKENS // SEQS  # some need twice their share, some fit nowhere
    load = jobs(seed=len(knobs), longest_tokens=longest_tokens)
    engine = make_engine(load, max_seqs=SEQS, max_step_tokens=32, page_tokens=PAGE_TOKENS, queue_limit=limit, **knobs)
    plans = itertools.count()
    engine.run(should_stop=lambda: next(plans) > MOST_PLANS)
    assert next(plans) < MOST_PLANS, "the engine makes plans and no progress"
    columns = engine.log.request_columns()
    assert len(columns["request"]) == REQUESTS and set(columns["finish_reason"]) <= REASONS
    for row, reason in enumerate(columns["finish_reason"]):
        refused = reason == FinishReason.REFUSED.value
        assert bool(columns["detail"][row]) == refused
        assert (columns["admitted_s"][row] is None) == refused
        assert columns["output_tokens"][row] == (0 if refused else load[row].output_tokens)
    refusals = sum(reason == FinishReason.REFUSED.value for reason in columns["finish_reason"])
    if limit is not None:
        assert refusals > REQUESTS / 3
        assert any("the queue is full" in detail for detail in columns["detail"])
    else:
        assert all("pages" in detail for detail in columns["detail"] if detail)
    pool = engine.scheduler.pool
    assert pool.free_count == pool.num_pages and not engine.scheduler.sequences
