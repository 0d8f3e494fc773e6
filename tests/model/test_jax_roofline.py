"""The cost model against `jax.experimental.roofline`, which walks the decoder's own program.

JAX counts FLOPs and HBM bytes of matrix products and leaves element-wise work aside, as a fused program does. It does
not look into loops whose length only the data knows, so attention is handed to the decoder as plain products here; and
it counts a scan's body once, so layers are multiplied out. Two things that no fused program moves are taken out: scores
on their way to memory and back, and the float32 form of queries, keys and values to which a bias is added.
"""

import logging

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct
from jax.experimental import roofline

from kernels.pallas.einsum import einsum_as, einsum_f32
from nanoserve.model import decoder
from nanoserve.model.params import abstract
from nanoserve.model.pool import empty_pool
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.op import totals
from nanoserve.roofline.ops import step_ops
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model
from nanoserve.specs.models import ModelSpec

FAMILIES = ["smollm2-135m", "llama-3.1-8b", "llama-2-70b", "qwen2.5-7b", "qwen3-8b", "mistral-7b-v0.3", "phi-3-mini"]
HBM_BYTES_ERROR = 0.01
CHIP = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 1})
SCORE_BYTES = 4 + 2  # written in float32, read as 16-bit weights
ROUNDED_BYTES = 4 - 2


def walked(spec: ModelSpec, rows: int, queries: int, context: int, sampled: int) -> tuple[int, int]:
    """FLOPs and HBM bytes, by JAX, of `rows` sequences whose `queries` new tokens each attend `context` positions."""
    tokens, per_head = rows * queries, (rows, context, spec.kv_heads, spec.head_size)

    def forward(params, pool, ids_T, keys_RSKh, values_RSKh):
        def attend(q_THh, k_TKh, v_TKh, pool, *_):
            q_RQKGh = q_THh.reshape(rows, queries, spec.kv_heads, -1, spec.head_size)
            scores = einsum_f32("RQKGh,RSKh->RKGQS", q_RQKGh, keys_RSKh)
            weights = jax.nn.softmax(scores).astype(q_THh.dtype)
            values = einsum_as(q_THh.dtype, "RKGQS,RSKh->RQKGh", weights, values_RSKh)
            return values.reshape(q_THh.shape), pool

        return decoder.forward(spec, params, pool, ids_T, ids_T, attend)

    def array(*shape: int, dtype=jnp.bfloat16):
        return ShapeDtypeStruct(shape, dtype)

    params = abstract(spec, jnp.bfloat16)
    pool = jax.eval_shape(lambda: empty_pool(spec, pages=2, page_tokens=16, dtype=jnp.bfloat16))
    ids = array(tokens, dtype=jnp.int32)
    _, layer = roofline.roofline(forward)(params, pool, ids, array(*per_head), array(*per_head))
    head_rows = max(sampled, 2)  # a lone row's product depends on the platform, and JAX does not look into choices
    _, head = roofline.roofline(lambda p, x: decoder.logits(spec, p, x))(params, array(head_rows, spec.hidden))
    rounded_bytes = ROUNDED_BYTES if params.layers.bqkv is not None else 0  # else they are rounded in the product
    kept_on_chip = tokens * (spec.heads * context * SCORE_BYTES + qkv_columns(spec) * rounded_bytes)
    flops = spec.layers * layer.flops + head.flops * sampled // head_rows
    return flops, spec.layers * (layer.hbm_bytes - kept_on_chip) + head.hbm_bytes


def qkv_columns(spec: ModelSpec) -> int:
    return (spec.heads + 2 * spec.kv_heads) * spec.head_size


def decode(rows: int, context: int) -> StepCounts:
    positions = rows * context
    return StepCounts(decode_seqs=rows, decode_kv_tokens=positions, decode_window_tokens=positions, sampled=rows)


def chunk(tokens: int) -> StepCounts:
    """A whole prompt; all pairs, because products do not mask."""
    return StepCounts(
        prefill_seqs=1,
        prefill_tokens=tokens,
        prefill_pairs=tokens * tokens,
        prefill_window_pairs=tokens * tokens,
        prefill_kv_tokens=tokens,
        prefill_window_kv_tokens=tokens,
        sampled=1,
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("counts", "rows", "queries", "context"),
    [(decode(8, 1024), 8, 1, 1024), (decode(64, 4096), 64, 1, 4096), (chunk(64), 1, 64, 64)],
    ids=["decode", "decode-mostly-kv", "prefill"],
)
def test_flops_are_equal_and_bytes_within_a_hundredth(name, counts, rows, queries, context, caplog):
    caplog.set_level(logging.ERROR)  # it names every element-wise operation that it passes over
    spec = model(name)
    flops, hbm_bytes = walked(spec, rows, queries, context, counts.sampled)
    ours = totals(step_ops(spec, CHIP, Precision(), counts))
    assert ours.matmul_flops + ours.attention_flops == flops
    gathered = rows * queries * spec.hidden * 2  # rows of the embedding, in and out: no product
    moved = ours.weight_bytes + ours.kv_read_bytes + ours.activation_bytes - 2 * gathered
    assert moved == pytest.approx(hbm_bytes, rel=HBM_BYTES_ERROR)
