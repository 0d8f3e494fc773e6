"""Worked examples of published course notes, recomputed: where the notes slip, the right value is the one here."""

import pytest

from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.memory import MemoryPlan, max_batch
from nanoserve.roofline.op import totals
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import bound_times
from nanoserve.specs.model_registry import model
from nanoserve.specs.sizes import kv_bytes_per_token, parameter_counts
from tests.roofline import factories as make


def test_llama_2_13b_at_4096_tokens_takes_3_125_gib_of_kv():
    assert 4096 * kv_bytes_per_token(model("llama-2-13b")) == 3_355_443_200 == 3.125 * 2**30


def test_a_70b_at_4096_tokens_takes_a_gigabyte_not_eleven():
    with_8_heads = 4096 * kv_bytes_per_token(model("llama-3.1-70b"))
    assert with_8_heads == pytest.approx(1.34e9, rel=0.005)
    assert 64 // 8 * with_8_heads == pytest.approx(10.7e9, rel=0.005)


@pytest.mark.parametrize(("token_bytes", "users"), [(64 * 2 * 80 * 128 * 2, 46), (8 * 2 * 80 * 128 * 2, 372)])
def test_500_gb_hold_46_users_of_4096_tokens_with_64_heads_and_372_with_8(token_bytes, users):
    plan = MemoryPlan(
        hbm_bytes=0,
        planned_bytes=500 * 10**9,
        weight_bytes=0,
        activation_bytes=0,
        runtime_bytes=0,
        page_bytes=16 * token_bytes,
        kv_bytes_per_token=token_bytes,
    )
    assert max_batch(plan, 4096) == users


def test_kv_of_llama_3_70b_in_int8_is_160_kib_a_token():
    assert kv_bytes_per_token(model("llama-3.1-70b"), "int8") == 160 * 1024


@pytest.mark.parametrize(("ways", "milliseconds"), [(8, 17), (16, 8.5)])
def test_a_v5e_decode_step_of_the_scaling_book(ways, milliseconds):
    """Batch 32 at 8,192 tokens, int8: weights and KV over bandwidth. The book rounds 70.6e9 parameters to 70e9.

    Source: Austin et al., "How to Scale Your Model", applied inference: 4x2 and 4x4 of v5e.
    """
    spec = model("llama-3.1-70b")
    cluster = make.cluster("tpu_v5e", ways)
    sums = totals(step_ops(spec, make.cluster("tpu_v5e"), make.INT8_WEIGHTS, make.decode_counts(32, 8192)))
    kv = 32 * 8192 * 160 * 1024
    assert sums.kv_read_bytes == kv
    weights = parameter_counts(spec).total
    assert weights + kv == pytest.approx(112e9, rel=0.02)
    assert (weights + kv) / (ways * 819e9) == pytest.approx(milliseconds * 1e-3, rel=0.02)

    ops = step_ops(spec, cluster, make.INT8_WEIGHTS, make.decode_counts(32, 8192))
    times = bound_times(ops, cluster, constants_for(cluster.chip, make.INT8_WEIGHTS, "sol"))
    replicas = 16 // 8 if ways == 16 else 1  # 8 KV heads on 16 chips: the book cuts KV by sequence instead
    assert times.weights == pytest.approx((sums.weight_bytes / ways) / 819e9, rel=0.02)
    assert times.kv == pytest.approx(replicas * kv / (ways * 819e9), rel=0.001)


def test_an_h100s_dense_peak_is_half_the_sparse_headline():
    assert make.cluster().chip.peak("bf16") == pytest.approx(1979e12 / 2, rel=0.001)
