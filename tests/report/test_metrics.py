import json
import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.engine.types import FinishReason
from nanoserve.report.metrics import BOUNDS, LostRequestError, summarize
from nanoserve.report.slo import Slo
from tests.report.factories import requests_table, steps_table
from tests.report.synthetic import PAGE_TOKENS, synthetic_run

SLO = Slo(name="test", ttft_s=1.0, tpot_s=0.5)


def _tiny_run():
    """Three requests, worked out by hand: a good one, a slow one, and a refusal."""
    prefill = {
        "kind": "mixed", "start_s": 10.0, "duration_s": 1.0, "prefill_seqs": 2, "prefill_tokens": 30,
        "executed_tokens": 32, "prefill_kv_tokens": 30, "executed_kv_tokens": 40, "sampled": 2, "mfu": 0.4,
        "mbu": 0.1, "sol_s": 0.5, "compute_s": 0.75, "overhead_s": 0.25, "running": 2, "waiting": 1,
        "pages_used": 2, "pages_total": 8, "kv_tokens_held": 30,
    }  # fmt: skip
    decode = {
        "start_s": 11.0, "duration_s": 3.0, "first_step_s": 1.0, "steps": 2, "decode_seqs": 2, "executed_tokens": 8,
        "decode_kv_tokens": 64, "executed_kv_tokens": 64, "sampled": 4, "mfu": 0.2, "mbu": 0.5, "sol_s": 1.5,
        "weights_s": 2.0, "kv_s": 1.0, "running": 2, "pages_used": 4, "pages_total": 8, "kv_tokens_held": 34,
        "preemptions": 1,
    }  # fmt: skip
    requests = [
        {
            "arrival_s": 10.0, "admitted_s": 10.0, "first_token_s": 11.0, "finish_s": 11.25, "prompt_tokens": 10,
            "output_tokens": 2,
        },
        {
            "arrival_s": 9.0, "sent_s": 10.0, "admitted_s": 10.0, "first_token_s": 11.0, "finish_s": 14.0,
            "prompt_tokens": 20, "output_tokens": 3, "finish_reason": "stop", "preemptions": 1, "max_stall_s": 0.125,
        },
        {
            "arrival_s": 13.0, "admitted_s": None, "first_token_s": None, "finish_s": 13.0, "prompt_tokens": 99,
            "finish_reason": "refused",
        },
    ]  # fmt: skip
    return steps_table(prefill, decode), requests_table(*requests)


def test_drafts_are_counted_and_absent_where_nothing_was_drafted():
    steps, requests = _tiny_run()
    assert math.isnan(summarize(steps, requests).accepted_share)
    drafted, kept = [0, 8], [0, 5]
    steps = steps.with_columns(pl.Series("drafted_tokens", drafted), pl.Series("accepted_tokens", kept))
    summary = summarize(steps, requests)
    assert (summary.drafted_tokens, summary.accepted_tokens, summary.accepted_share) == (8, 5, 0.625)
    assert summary.tokens_per_row == 9 / 4  # two rows in each of two steps, and five accepted


def test_a_tiny_run_gives_the_numbers_worked_out_by_hand():
    summary = summarize(*_tiny_run(), SLO, page_tokens=16)
    reasons = {reason: number for reason, number in summary.finish_reasons.items() if number}
    assert reasons == {"length": 1, "stop": 1, "refused": 1}
    assert list(summary.finish_reasons) == [reason.value for reason in FinishReason]
    assert (summary.issued, summary.completed, summary.duration_s) == (3, 2, 5.0)
    assert (summary.requests_per_s, summary.prompt_tokens_per_s) == (0.4, 6.0)
    assert (summary.output_tokens_per_s, summary.total_tokens_per_s) == (1.0, 7.0)
    assert (summary.ttft_s.mean, summary.ttft_s.p50, summary.ttft_s.max) == (1.5, 1.5, 2.0)
    assert (summary.tpot_s.count, summary.tpot_s.mean, summary.tpot_s.max) == (2, 0.875, 1.5)
    assert (summary.itl_s.count, summary.itl_s.mean, summary.itl_s.max) == (4, 1.5, 2.0)
    assert (summary.e2e_s.mean, summary.e2e_s.p90) == (3.125, pytest.approx(4.625))
    assert summary.norm_latency_s.max == pytest.approx(5.0 / 3)
    assert (summary.queue_s.max, summary.schedule_delay_s.max) == (1.0, 1.0)
    assert (summary.max_stall_s.count, summary.max_stall_s.p99) == (1, 0.125)
    assert (summary.goodput_rps, summary.slo_met) == (0.2, False)
    assert (summary.slo_attainment, summary.slo_attainment_completed) == (pytest.approx(1 / 3), 0.5)


def test_utilization_of_a_tiny_run_is_weighted_by_time():
    summary = summarize(*_tiny_run(), page_tokens=16)
    assert (summary.busy_s, summary.idle_s, summary.busy_fraction) == (4.0, 1.0, 0.8)
    assert (summary.mfu, summary.mbu) == (pytest.approx(0.25), pytest.approx(0.4))
    assert summary.roofline_fraction == 0.5
    assert summary.time_by_bound_s == {
        "compute": 0.75, "weights": 2.0, "kv": 1.0, "activations": 0.0, "link": 0.0, "overhead": 0.25, "idle": 1.0,
    }  # fmt: skip
    assert summary.bound == "weights"
    assert (summary.useful_tokens, summary.executed_tokens) == (34, 40)
    assert (summary.useful_kv_tokens, summary.executed_kv_tokens) == (94, 104)
    assert (summary.steps, summary.plans, summary.preemptions) == (3, 2, 1)
    assert (summary.pages_total, summary.pages_used_peak, summary.pages_used_mean) == (8, 4, 3.5)
    assert summary.kv_utilization == pytest.approx((30 + 3 * 34) / (16 * (2 + 3 * 4)))
    assert (summary.running_mean, summary.waiting_mean, summary.waiting_peak) == (2.0, 0.25, 1)


def test_without_limits_or_page_size_their_numbers_are_missing_not_zero():
    summary = summarize(*_tiny_run())
    assert summary.slo_met is None
    assert math.isnan(summary.goodput_rps) and math.isnan(summary.slo_attainment) and math.isnan(summary.kv_utilization)
    assert json.loads(json.dumps(summary.as_dict(), allow_nan=False))["goodput_rps"] is None


def test_a_single_token_is_judged_by_its_first_token_alone():
    request = {"arrival_s": 0.0, "admitted_s": 0.0, "first_token_s": 0.9, "finish_s": 0.9, "output_tokens": 1}
    steps, _ = _tiny_run()
    summary = summarize(steps, requests_table(request), SLO)
    assert summary.tpot_s.count == 0
    assert (summary.slo_attainment, summary.slo_met) == (1.0, True)


def test_a_run_in_which_everything_was_refused_has_no_plans_and_no_rates():
    steps, requests = _tiny_run()
    summary = summarize(steps.clear(), requests.filter(pl.col("finish_reason") == "refused"), SLO)
    assert (summary.plans, summary.duration_s, summary.bound) == (0, 0.0, "idle")
    assert (summary.slo_attainment, summary.slo_met) == (0.0, False)
    assert summary.ttft_s.count == 0 and math.isnan(summary.requests_per_s) and math.isnan(summary.mfu)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finish_reason": pl.lit("")}, "request 0 has finish_reason ''"),
        ({"finish_s": pl.lit(None, dtype=pl.Float64)}, "request 0 left the engine without a finish_s"),
        ({"request": pl.lit(7)}, "request 7 is recorded 3 times"),
    ],
)
def test_a_request_that_was_lost_or_doubled_stops_the_report(change, message):
    steps, requests = _tiny_run()
    with pytest.raises(LostRequestError, match=message):
        summarize(steps, requests.with_columns(**change))


def test_issued_must_equal_what_left():
    with pytest.raises(LostRequestError, match="4 requests were issued, 3 are accounted for: 1 length"):
        summarize(*_tiny_run(), issued=4)


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), rate_rps=st.floats(1.0, 60.0), pages=st.sampled_from([1500, 30_000]))
def test_every_request_and_every_second_is_accounted_for(seed, rate_rps, pages):
    steps, requests = synthetic_run(seed, requests=60, rate_rps=rate_rps, pages=pages, timeout_s=2.0)
    summary = summarize(steps, requests, SLO, issued=60, page_tokens=PAGE_TOKENS)
    assert sum(summary.finish_reasons.values()) == summary.issued == 60
    assert summary.goodput_rps <= summary.requests_per_s
    assert sum(summary.time_by_bound_s.values()) == pytest.approx(summary.busy_s + summary.idle_s)
    assert set(summary.time_by_bound_s) == {*BOUNDS, "idle"}
    assert summary.useful_tokens <= summary.executed_tokens


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_rows_changes_no_bit(seed):
    steps, requests = synthetic_run(11, requests=40, rate_rps=30.0, pages=1500)
    shuffled = [frame.sample(fraction=1.0, shuffle=True, seed=seed) for frame in (steps, requests)]
    expected = summarize(steps, requests, SLO, page_tokens=PAGE_TOKENS).as_dict()
    assert summarize(shuffled[0], shuffled[1], SLO, page_tokens=PAGE_TOKENS).as_dict() == expected
