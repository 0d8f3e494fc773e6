"""Seconds from operations: limits that are never undercut, and figures published by others."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.roofline.calibration import Mode, constants_for
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.numeric import interpolate_log2
from nanoserve.roofline.op import totals
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import bound_times, critical_batch_tokens, op_times, step_time
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import Precision
from nanoserve.specs.model_registry import model
from tests.roofline import factories as make

PUBLISHED = Path(__file__).parents[3] / "shared" / "facts" / "published_throughput.csv"


def priced(spec, cluster, precision, counts, mode: Mode = "calibrated"):
    ops = step_ops(spec, cluster, precision, counts)
    return ops, constants_for(cluster.chip, precision, mode)


@given(spec=make.models, cluster=make.clusters, precision=make.precisions, data=st.data())
def test_no_operation_is_calibrated_below_its_limit(spec, cluster, precision, data):
    counts = data.draw(make.plans(spec))
    ops, calibrated = priced(spec, cluster, precision, counts)
    sol = constants_for(cluster.chip, precision, "sol")
    for op in ops:
        limit = op_times(op, cluster, sol).total
        assert limit <= op_times(op, cluster, calibrated).total * (1 + 1e-12), op.name


@given(spec=make.models, cluster=make.clusters, precision=make.precisions, data=st.data())
def test_time_grows_with_context_and_with_rows(spec, cluster, precision, data):
    rows, context = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 8000))
    seconds = [
        step_time(*_args(spec, cluster, precision, make.decode_counts(r, c, window=spec.sliding_window_tokens)))
        for r, c in ((rows, context), (rows, context + 100), (rows + 1, context + 100))
    ]
    assert seconds == sorted(seconds)


def _args(spec, cluster, precision, counts):
    ops, calibration = priced(spec, cluster, precision, counts)
    return ops, cluster, calibration


@settings(max_examples=25)
@given(
    spec=make.models,
    cluster=make.clusters,
    precision=make.precisions,
    mode=st.sampled_from(["sol", "calibrated"]),
    data=st.data(),
)
def test_arrays_are_priced_as_numbers_are(spec, cluster, precision, mode, data):
    plans = [data.draw(make.plans(spec)) for _ in range(3)]
    stacked = StepCounts(
        **{f.name: np.array([getattr(p, f.name) for p in plans]) for f in dataclasses.fields(StepCounts)}
    )
    ops, calibration = priced(spec, cluster, precision, stacked, mode)
    many = bound_times(ops, cluster, calibration)
    for row, plan in enumerate(plans):
        one = bound_times(step_ops(spec, cluster, precision, plan), cluster, calibration)
        for field in dataclasses.fields(one):
            value = np.broadcast_to(getattr(many, field.name), 3)[row]
            assert value == pytest.approx(getattr(one, field.name), rel=1e-12, abs=1e-18), field.name


def test_a_decode_step_at_the_limit_waits_for_its_bytes():
    spec, cluster = model("llama-3.1-8b"), make.cluster()
    ops, sol = priced(spec, cluster, make.BF16, make.decode_counts(16, 2000), "sol")
    sums = totals(ops)
    moved = sums.weight_bytes + sums.kv_read_bytes + sums.kv_write_bytes + sums.activation_bytes
    assert step_time(ops, cluster, sol) == pytest.approx(moved / 3350e9, rel=1e-12)


def test_a_long_prompt_at_the_limit_waits_for_its_flops():
    spec, cluster = model("llama-3.1-8b"), make.cluster()
    ops, sol = priced(spec, cluster, make.BF16, make.prefill_counts([(0, 8192)]), "sol")
    sums = totals(ops)
    times = bound_times(ops, cluster, sol)
    assert times.compute == pytest.approx((sums.matmul_flops + sums.attention_flops) / 989.4e12, rel=1e-12)
    assert times.compute > 0.99 * times.total


def test_the_host_gap_is_overhead_of_every_step():
    spec, cluster = model("llama-3.1-8b"), make.cluster()
    one, ten = (
        bound_times(*_args(spec, cluster, make.BF16, make.decode_counts(8, 1000, steps=n))).overhead for n in (1, 10)
    )
    assert ten == pytest.approx(10 * one)
    assert one > 0.5e-3


def test_the_limit_is_below_every_published_time_per_token_of_vllm_on_h100():
    """Llama-3.1-70B in fp8; a request's context is at least 0.8 of the stated prompt, see the source of the rows."""
    if not PUBLISHED.exists():
        pytest.skip(f"no published throughputs at {PUBLISHED}")
    with PUBLISHED.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if "silicon_sample" in row["source"] and _is_vllm_h100_70b(row)]
    assert len(rows) > 20
    spec = model("llama-3.1-70b")
    for row in rows:
        cluster = make.cluster(ways=int(float(row["tp"])))
        resident = int(row["concurrency"]) if float(row["ttft_ms"]) < 5000 else 1  # longer: most of them were queued
        counts = make.decode_counts(resident, int(0.8 * int(row["isl"])))
        ops, sol = priced(spec, cluster, make.FP8, counts, "sol")
        assert step_time(ops, cluster, sol) < float(row["tpot_ms"]) * 1e-3, row


def _is_vllm_h100_70b(row: dict[str, str]) -> bool:
    return (row["model"], row["engine"], row["hardware"]) == ("Llama-3.1-70B", "vllm", "H100-SXM-80GB")


def test_critical_batch_of_a_v5e_is_the_scaling_books():
    v5e = chip("tpu_v5e")
    assert critical_batch_tokens(v5e, make.BF16) == pytest.approx(240, rel=0.01)
    assert critical_batch_tokens(v5e, Precision(weights="int8")) == pytest.approx(120, rel=0.01)


@pytest.mark.parametrize(("tokens", "bound"), [(230, "weights"), (250, "compute")])
def test_products_change_bound_at_the_critical_batch(tokens, bound):
    """Activations move too, so of the whole product only the comparison of weights and FLOPs turns exactly there."""
    v5e = make.cluster("tpu_v5e")
    ops = step_ops(model("llama-3.1-70b"), v5e, make.BF16, make.decode_counts(tokens, 1))
    op = dataclasses.replace(next(op for op in ops if op.name == "down"), activation_bytes=0)
    times = op_times(op, v5e, constants_for(v5e.chip, make.BF16, "sol"))
    assert getattr(times, bound) == times.total > 0


def test_curves_interpolate_between_points_and_are_flat_outside():
    curve = ((16, 1.0), (64, 3.0))
    assert [interpolate_log2(x, curve) for x in (1, 16, 32, 64, 999)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert interpolate_log2(np.array([1.0, 32.0, 999.0]), curve).tolist() == [1.0, 2.0, 3.0]


def test_a_step_time_can_be_traced_by_jax():
    import jax

    spec, cluster = model("mixtral-8x7b"), make.cluster(ways=2)
    calibration = constants_for(cluster.chip, make.BF16, "calibrated")
    plan = make.joined(make.decode_counts(32, 700), make.prefill_counts([(64, 500)], sampled=1))

    def seconds(counts):
        plan = StepCounts(*counts)
        return step_time(step_ops(spec, cluster, make.BF16, plan), cluster, calibration)

    with jax.enable_x64(True):
        traced = jax.jit(seconds)(dataclasses.astuple(plan))
    assert float(traced) == pytest.approx(seconds(dataclasses.astuple(plan)), rel=1e-12)
