"""The report read against the engine: what the plans say must be what the requests saw."""

import random

import polars as pl
import pytest

from nanoserve.engine.records import COST_COLUMNS
from nanoserve.engine.types import TICKS_PER_S
from nanoserve.report.content import throughput_table
from nanoserve.report.gaps import token_gaps
from nanoserve.report.metrics import plan_columns, request_columns, summarize
from nanoserve.report.stats import distribution
from tests.engine.factories import FIXED_TICKS, Job, LinearExecutor, make_engine

STEP_S = FIXED_TICKS / TICKS_PER_S
TOLERANCE = 1e-6  # relative; times are differences of doubles near the run's end


def _run(seed: int, num_pages: int, stops: dict[int, int], **config) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = random.Random(seed)
    arrivals = sorted(rng.randrange(300 * FIXED_TICKS) for _ in range(60))
    jobs = [Job(arrival, rng.randrange(1, 60), rng.randrange(1, 40)) for arrival in arrivals]
    jobs[5] = Job(jobs[5].arrival_ticks, 5000, 10)  # refused: longer than the context
    engine = make_engine(jobs, num_pages=num_pages, executor=LinearExecutor(stops), **config)
    engine.run()
    steps = pl.DataFrame(engine.log.step_columns(num_pages)).with_columns(
        pl.lit(0.0).alias(name) for name in COST_COLUMNS
    )
    return steps, pl.DataFrame(engine.log.request_columns(), infer_schema_length=None)


@pytest.mark.parametrize("batching", ["mixed", "prefill_first"])
@pytest.mark.parametrize("seed", [0, 1])
def test_pooled_gaps_are_those_that_the_requests_saw(seed, batching):
    steps, requests = _run(seed, num_pages=400, stops={}, batching=batching)
    done = request_columns(requests)
    gaps_s, seqs = token_gaps(plan_columns(steps))
    completed = done["completed"]
    assert steps["preemptions"].sum() == 0 and (steps["steps"] > 1).any()
    assert seqs.sum() == (done["output_tokens"][completed] - 1).sum()
    between_s = (done["finish_s"] - done["first_token_s"])[completed].sum()
    assert (gaps_s * seqs).sum() == pytest.approx(between_s, rel=TOLERANCE)
    assert distribution(gaps_s, seqs).p50 >= STEP_S * (1 - TOLERANCE)


def test_a_crowded_run_is_conserved_and_its_stalls_are_seen():
    steps, requests = _run(2, num_pages=32, stops={7: 1, 9: 1})
    summary = summarize(steps, requests, issued=60, page_tokens=4)
    assert summary.finish_reasons["refused"] == 1 and summary.finish_reasons["stop"] == 2
    assert summary.preemptions > 0
    assert summary.max_stall_s.count == (requests["preemptions"] > 0).sum()
    assert summary.max_stall_s.max > STEP_S
    assert 0 < summary.kv_utilization <= 1
    assert summary.prefix_hit_share != summary.prefix_hit_share  # not a number: nothing was asked
    assert not any("prefix" in row[0] or "swapped" in row[0] for row in throughput_table(summary).rows)
    assert summary.busy_s <= summary.duration_s * (1 + TOLERANCE)


def test_kv_that_was_kept_is_counted_and_said():
    steps, requests = _run(2, num_pages=40, stops={}, prefix_cache="lru", preemption="swap")
    summary = summarize(steps, requests, issued=60, page_tokens=4)
    assert 0 < summary.prefix_hit_tokens < summary.prefix_lookup_tokens
    assert summary.prefix_hit_share == summary.prefix_hit_tokens / summary.prefix_lookup_tokens
    assert summary.swapped_out_tokens == summary.swapped_in_tokens > 0
    assert requests["cached_tokens"].sum() <= summary.prefix_hit_tokens
    assert summary.prefix_lookup_tokens - summary.prefix_hit_tokens == steps["prefill_tokens"].sum()
    assert 0 < summary.kv_utilization <= 1
    said = {row[0]: row[1] for row in throughput_table(summary).rows}
    assert said["tokens found there"] == f"{summary.prefix_hit_tokens:,}"
    assert said["tokens swapped back"] == f"{summary.swapped_in_tokens:,}"
