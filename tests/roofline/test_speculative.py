"""Verification: with nothing drafted it is a decode step; drafted tokens compute more and read the same KV."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.counts import StepCounts, causal_pairs, with_drafts
from nanoserve.roofline.matrices import attention_flops, matmul_flops
from nanoserve.roofline.op import totals
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.pricing import Pricer
from nanoserve.roofline.speculative import Verification, expected_tokens, verify_counts, verify_ops
from nanoserve.roofline.timing import step_time
from nanoserve.specs.model_registry import model
from tests.roofline import factories as make


@settings(max_examples=40)
@given(spec=make.models, cluster=make.clusters, rows=st.integers(1, 64), past=st.integers(0, 9000))
def test_with_nothing_drafted_it_is_a_decode_step(spec, cluster, rows, past):
    step = Verification(rows=rows, past_tokens=past, draft_tokens=0)
    decode = make.decode_counts(rows, past + 1, window=spec.sliding_window_tokens)
    assert verify_ops(spec, cluster, make.BF16, step) == step_ops(spec, cluster, make.BF16, decode)


def test_drafted_tokens_go_through_everything_and_read_each_position_once():
    spec, step = model("llama-3.1-8b"), Verification(rows=3, past_tokens=1000, draft_tokens=4)
    sums = totals(verify_ops(spec, make.cluster(), make.BF16, step))
    assert sums.matmul_flops == matmul_flops(spec, 15, 15)
    assert sums.attention_flops == attention_flops(spec, 3 * (1001 + 1002 + 1003 + 1004 + 1005))
    assert sums.kv_read_bytes == 3 * 1005 * 131072
    assert sums.kv_write_bytes == 15 * 131072


def test_verifying_is_cheap_while_a_step_waits_for_memory():
    """Four more tokens a row at the datasheet's limit: under a twentieth for one row, several times for a thousand."""
    spec, cluster = model("llama-3.1-8b"), make.cluster()
    sol = constants_for(cluster.chip, make.BF16, "sol")
    for rows, low, high in ((1, 1.0, 1.05), (1000, 1.5, 5.0)):
        seconds = [
            step_time(
                verify_ops(spec, cluster, make.BF16, Verification(rows=rows, past_tokens=500, draft_tokens=k)),
                cluster,
                sol,
            )
            for k in (0, 4)
        ]
        assert low < seconds[1] / seconds[0] < high


def test_arrays_of_draft_lengths_are_priced_at_once():
    spec, cluster = model("mistral-7b-v0.1"), make.cluster()
    drafted = np.arange(6)
    many = verify_ops(spec, cluster, make.BF16, Verification(rows=8, past_tokens=5000, draft_tokens=drafted))
    for k in drafted.tolist():
        one = verify_ops(spec, cluster, make.BF16, Verification(rows=8, past_tokens=5000, draft_tokens=k))
        assert totals(many).attention_flops[k] == totals(one).attention_flops
        assert totals(many).matmul_flops[k] == totals(one).matmul_flops


@settings(max_examples=60)
@given(
    spec=make.models,
    cluster=make.clusters,
    rows=st.integers(1, 200),
    past=st.integers(0, 9000),
    drafted=st.integers(1, 8),
    chunk=st.sampled_from([0, 7, 500]),
)
def test_a_plan_that_verifies_is_priced_as_its_operations_take(spec, cluster, rows, past, drafted, chunk):
    step = Verification(rows=rows, past_tokens=past, draft_tokens=drafted)
    counts = verify_counts(step, spec.sliding_window_tokens)
    if chunk:
        pairs = causal_pairs(0, chunk)
        beside = {"prefill_seqs": 1, "prefill_tokens": chunk, "prefill_pairs": pairs, "prefill_kv_tokens": chunk}
        beside |= {"prefill_window_pairs": pairs, "prefill_window_kv_tokens": chunk, "sampled": counts.sampled + 1}
        counts = dataclasses.replace(counts, **beside)
    calibration = constants_for(cluster.chip, make.BF16, "calibrated")
    seconds = step_time(step_ops(spec, cluster, make.BF16, counts), cluster, calibration)
    ticks = Pricer(spec, cluster, make.BF16, calibration, ticks_per_s=1 << 60).plan_ticks(counts)
    assert ticks / (1 << 60) == pytest.approx(seconds, rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)), min_size=1, max_size=5), st.sampled_from([None, 7]))
def test_rows_of_different_lengths_add_up(rows, window):
    plain = StepCounts(decode_seqs=len(rows), prefill_tokens=3, sampled=len(rows) + 1)
    counts = with_drafts(plain, rows, window)
    alone = [
        verify_counts(Verification(rows=1, past_tokens=past, draft_tokens=tokens - 1), window) for past, tokens in rows
    ]
    for name in ("decode_kv_tokens", "decode_window_tokens", "drafted_tokens", "drafted_pairs", "drafted_window_pairs"):
        assert getattr(counts, name) == sum(getattr(one, name) for one in alone)
    assert counts.sampled == 1 + sum(tokens for _, tokens in rows)
    assert with_drafts(counts, rows, window) == counts


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.8])
def test_expected_tokens_are_those_of_accepting_in_turn(acceptance):
    """One of the target itself, and the drafted ones up to the first that is refused."""
    k = 4
    by_hand = 1 + sum(acceptance**i for i in range(1, k + 1))
    assert expected_tokens(acceptance, k) == pytest.approx(by_hand)
