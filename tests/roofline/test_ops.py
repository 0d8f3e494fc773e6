"""What operations compute and move: against formulas written out by hand, other counters, and each other."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.matrices import attention_flops, matmul_flops
from nanoserve.roofline.moe import expected_experts
from nanoserve.roofline.op import Op, totals
from nanoserve.roofline.ops import prefill_attention, step_ops
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model
from nanoserve.specs.sizes import parameter_counts, weight_bytes
from tests.roofline import factories as make

NAMES = ("name", "kind", "compute", "stored", "heads")
NUMBERS = [field.name for field in dataclasses.fields(Op) if field.name not in NAMES]
MIXED = make.joined(make.decode_counts(32, 700), make.prefill_counts([(0, 300), (64, 200)], sampled=1))


def named(ops: tuple[Op, ...], name: str) -> Op:
    (op,) = (op for op in ops if op.name == name)
    return op


def test_matmul_flops_of_a_llama_layer_are_two_m_n_k_of_each_matrix():
    spec = model("llama-3.1-70b")  # D 8192, 64 heads and 8 KV heads of 128, F 28672, V 128256, 80 layers
    qkv, o, gate_up, down = 8192 * 10240, 8192 * 8192, 8192 * 57344, 28672 * 8192
    assert matmul_flops(spec, 532, 33) == 532 * 80 * 2 * (qkv + o + gate_up + down) + 33 * 2 * 8192 * 128256


def test_attention_flops_are_four_per_pair_head_and_element():
    assert attention_flops(model("llama-3.1-70b"), 1000) == 4 * 80 * 64 * 128 * 1000


@given(spec=make.models, precision=make.precisions, data=st.data())
def test_one_chip_computes_exactly_the_flops_of_the_model(spec, precision, data):
    counts = data.draw(make.plans(spec))
    sums = totals(step_ops(spec, make.cluster(), precision, counts))
    pairs = counts.decode_kv_tokens + counts.prefill_pairs
    window_pairs = counts.decode_window_tokens + counts.prefill_window_pairs
    assert sums.matmul_flops == matmul_flops(spec, counts.new_tokens, counts.sampled)
    if spec.mla is None:  # which computes more than the textbook's FLOPs, see below
        assert sums.attention_flops == attention_flops(spec, pairs, window_pairs)
    assert isinstance(sums.matmul_flops, int) and isinstance(sums.attention_flops, int)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-7b", "gpt3-175b", "smollm2-135m", "phi-3-mini"])
@pytest.mark.parametrize("precision", [make.BF16, make.FP8, Precision(weights="int4"), Precision(weights="fp4")])
def test_a_step_reads_every_stored_weight_once_except_rows_of_the_embedding(name, precision):
    spec = model(name)
    ops = step_ops(spec, make.cluster(), precision, make.decode_counts(7, 100))
    read = totals(ops).weight_bytes - named(ops, "embed").weight_bytes
    parameters = parameter_counts(spec)
    only_gathered = parameters.positions + (0 if spec.tied_embeddings else parameters.embedding)
    assert read == pytest.approx(weight_bytes(spec, precision) - 2 * only_gathered, abs=1)


def test_a_plan_of_several_steps_reads_weights_each_step_and_writes_each_token_once():
    spec = model("llama-3.1-8b")
    one = totals(step_ops(spec, make.cluster(), make.BF16, make.decode_counts(16, 500)))
    five = totals(step_ops(spec, make.cluster(), make.BF16, make.decode_counts(16, 500, steps=5)))
    assert five.weight_bytes == 5 * one.weight_bytes
    assert five.kv_write_bytes == 5 * one.kv_write_bytes == 5 * 16 * 131072
    assert five.kv_read_bytes == 131072 * 16 * (500 + 501 + 502 + 503 + 504)


def test_the_head_is_not_read_when_nothing_is_sampled():
    head = named(step_ops(model("llama-3.1-8b"), make.cluster(), make.BF16, make.prefill_counts([(0, 64)])), "head")
    assert (head.flops, head.weight_bytes, head.launches) == (0, 0, 0)


def test_eight_ways_divide_the_flops_and_send_a_rings_bytes():
    spec = model("llama-3.1-70b")
    alone = totals(step_ops(spec, make.cluster(), make.BF16, MIXED))
    ops = step_ops(spec, make.cluster(ways=8), make.BF16, MIXED)
    assert 8 * totals(ops).matmul_flops == alone.matmul_flops
    assert 8 * totals(ops).kv_read_bytes == alone.kv_read_bytes
    assert named(ops, "all_reduce").link_bytes == 2 * 80 * (7 / 8) * 2 * MIXED.new_tokens * 8192 * 2
    assert named(ops, "all_reduce").launches == 160
    assert named(ops, "gather_logits").link_bytes == (7 / 8) * MIXED.sampled * 128256 * 2


def test_kv_heads_fewer_than_the_ways_are_replicated():
    spec = model("llama-3.1-70b")
    eight, sixteen = (
        totals(step_ops(spec, make.cluster(ways=n), make.BF16, make.decode_counts(4, 1000))) for n in (8, 16)
    )
    assert eight.kv_read_bytes == sixteen.kv_read_bytes


def test_a_sliding_window_bounds_what_attention_reads_and_computes():
    spec = model("mistral-7b-v0.1")
    counts = make.decode_counts(3, 10_000, window=4096)
    attention = named(step_ops(spec, make.cluster(), make.BF16, counts), "attention_decode")
    assert attention.kv_read_bytes == 3 * 4096 * 131072
    assert attention.flops == attention_flops(spec, 3 * 4096)


def test_a_window_on_some_layers_bounds_those():
    spec = dataclasses.replace(model("mistral-7b-v0.1"), full_attention_every=4)
    counts = make.decode_counts(3, 10_000, window=4096)
    attention = named(step_ops(spec, make.cluster(), make.BF16, counts), "attention_decode")
    assert attention.kv_read_bytes == 3 * (8 * 10_000 + 24 * 4096) * 131072 // 32
    assert attention.flops == attention_flops(spec, 3 * 10_000, 3 * 4096)


def test_a_soft_cap_moves_nothing_and_norms_after_a_layer_do():
    plain = model("llama-3.1-8b")
    capped = dataclasses.replace(plain, attention_soft_cap=50.0, logits_soft_cap=30.0)
    assert step_ops(capped, make.cluster(), make.BF16, MIXED) == step_ops(plain, make.cluster(), make.BF16, MIXED)
    more = dataclasses.replace(plain, post_norms=True)
    before, after = (named(step_ops(spec, make.cluster(), make.BF16, MIXED), "elementwise") for spec in (plain, more))
    assert after.unfused_bytes - before.unfused_bytes == 32 * MIXED.new_tokens * 2 * 2 * 4096 * 2
    assert after.launches - before.launches == 2 * 32


def test_routed_experts_compute_top_k_and_read_those_chosen():
    spec = model("mixtral-8x7b")
    expert = 2 * 4096 * 2 * 14336  # bytes of gate and up
    for rows, distinct in ((1, 2), (1000, 8)):
        ops = step_ops(spec, make.cluster(), make.BF16, make.decode_counts(rows, 100))
        experts = named(ops, "experts_gate_up")
        assert experts.flops == 32 * rows * 2 * 2 * 4096 * 2 * 14336
        assert experts.weight_bytes == pytest.approx(32 * distinct * expert, rel=1e-9)


def test_expected_experts_agree_with_drawing_them():
    generator = np.random.default_rng(0)
    draws = [len({e for _ in range(6) for e in generator.choice(8, 2, replace=False)}) for _ in range(4000)]
    assert expected_experts(8, 2, 6) == pytest.approx(np.mean(draws), abs=0.05)


@settings(max_examples=25)
@given(spec=make.models, cluster=make.clusters, precision=make.precisions, data=st.data())
def test_arrays_give_what_numbers_give(spec, cluster, precision, data):
    plans = [data.draw(make.plans(spec)) for _ in range(3)]
    stacked = StepCounts(
        **{f.name: np.array([getattr(p, f.name) for p in plans]) for f in dataclasses.fields(StepCounts)}
    )
    columns = step_ops(spec, cluster, precision, stacked)
    for row, plan in enumerate(plans):
        for many, one in zip(columns, step_ops(spec, cluster, precision, plan), strict=True):
            assert [getattr(many, field) for field in NAMES] == [getattr(one, field) for field in NAMES]
            for field in NUMBERS:
                if getattr(one, field) is None:
                    assert getattr(many, field) is None
                    continue
                value = np.broadcast_to(getattr(many, field), 3)[row]
                assert value == pytest.approx(getattr(one, field), rel=1e-12), (one.name, field)


def test_prefill_attention_alone_is_the_one_of_step_ops():
    spec, cluster = model("mistral-7b-v0.1"), make.cluster(ways=2)
    assert prefill_attention(spec, cluster, make.BF16, MIXED) in step_ops(spec, cluster, make.BF16, MIXED)


def test_a_mesh_axis_that_does_not_exist_names_the_nearest():
    two = ClusterSpec(chip=make.cluster().chip, mesh={"tensro": 2})
    with pytest.raises(ConfigError, match=r"no axis 'tensro'.*Did you mean 'tensor'"):
        step_ops(model("llama-3.1-8b"), two, make.BF16, MIXED)


def test_a_misspelt_dtype_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'bf16'"):
        step_ops(model("llama-3.1-8b"), make.cluster(), Precision(weights="bf61"), MIXED)


def test_flops_and_hbm_bytes_of_a_product_agree_with_jaxs_own_roofline():
    """A matrix product of the same shape, walked by `jax.experimental.roofline`."""
    import jax.numpy as jnp
    from jax import ShapeDtypeStruct
    from jax.experimental import roofline

    spec, rows = model("llama-3.1-8b"), 48
    down = named(step_ops(spec, make.cluster(), make.BF16, make.decode_counts(rows, 10)), "down")
    _, theirs = roofline.roofline(jnp.dot)(
        ShapeDtypeStruct((rows, spec.ffn), jnp.bfloat16), ShapeDtypeStruct((spec.ffn, spec.hidden), jnp.bfloat16)
    )
    assert down.flops == spec.layers * theirs.flops
    assert down.weight_bytes + down.activation_bytes == spec.layers * theirs.hbm_bytes
