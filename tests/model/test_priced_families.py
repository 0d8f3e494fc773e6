"""Families that are priced and not executed: the same FLOPs as their layers, written out from the papers and traced.

Each layer here is one function over shapes alone, with every product an einsum; `dot_general_flops` counts them.
"""

import jax
import jax.numpy as jnp
import pytest

from nanoserve.model.flops import dot_general_flops
from nanoserve.roofline.counts import StepCounts, causal_pairs
from nanoserve.roofline.matrices import attention_flops, matmul_flops
from nanoserve.roofline.op import totals
from nanoserve.roofline.ops import step_ops
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model
from nanoserve.specs.models import MlaSpec, ModelSpec, MoeSpec

CHIP = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 1})
TOKENS, PAST = 6, 11


def moe_of(spec: ModelSpec) -> MoeSpec:
    assert spec.moe is not None
    return spec.moe


def mla_of(spec: ModelSpec) -> MlaSpec:
    assert spec.mla is not None
    return spec.mla


def flops(function, *shapes: tuple[int, ...]) -> int:
    """FLOPs of the products in `function` of bf16 arrays of these shapes."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return dot_general_flops(jax.make_jaxpr(function)(*arrays)).total()


def routed_layer_flops(spec: ModelSpec, tokens: int) -> int:
    """Router, the chosen experts of each token, and the shared ones."""
    moe, width = moe_of(spec), spec.hidden

    def layer(x_TD, router_DE, up_TkDF, down_TkFD, shared_up_DF, shared_down_FD):
        scores_TE = jnp.einsum("TD,DE->TE", x_TD, router_DE)
        hidden_TkF = jnp.einsum("TD,TkDF->TkF", x_TD, up_TkDF)[..., : moe.ffn]  # gate times up
        routed_TD = jnp.einsum("TkF,TkFD->TD", hidden_TkF, down_TkFD)
        shared_TF = jnp.einsum("TD,DF->TF", x_TD, shared_up_DF)[..., : moe.shared * moe.ffn]
        return scores_TE, routed_TD + jnp.einsum("TF,FD->TD", shared_TF, shared_down_FD)

    return flops(
        layer,
        (tokens, width),
        (width, moe.experts),
        (tokens, moe.top_k, width, 2 * moe.ffn),
        (tokens, moe.top_k, moe.ffn, width),
        (width, 2 * moe.shared * moe.ffn),
        (moe.shared * moe.ffn, width),
    )


def dense_layer_flops(spec: ModelSpec, tokens: int) -> int:
    def layer(x_TD, up_DF, down_FD):
        return jnp.einsum("TF,FD->TD", jnp.einsum("TD,DF->TF", x_TD, up_DF)[..., : spec.ffn], down_FD)

    return flops(layer, (tokens, spec.hidden), (spec.hidden, 2 * spec.ffn), (spec.ffn, spec.hidden))


def feed_forward_flops(spec: ModelSpec, tokens: int) -> int:
    dense = moe_of(spec).dense_layers
    return dense * dense_layer_flops(spec, tokens) + (spec.layers - dense) * routed_layer_flops(spec, tokens)


def heads_flops(spec: ModelSpec, tokens: int) -> int:
    """Projections of one layer with keys and values per head."""
    size = spec.head_size

    def layer(x_TD, wq_DHh, wkv_DKh, wo_HhD):
        q_THh, kv_TKh = jnp.einsum("TD,DHh->THh", x_TD, wq_DHh), jnp.einsum("TD,DKh->TKh", x_TD, wkv_DKh)
        return jnp.einsum("THh,HhD->TD", q_THh, wo_HhD), kv_TKh

    width = spec.hidden
    return flops(
        layer, (tokens, width), (width, spec.heads, size), (width, 2 * spec.kv_heads, size), (spec.heads, size, width)
    )


def latent_shapes(spec: ModelSpec) -> list[tuple[int, ...]]:
    """Matrices of DeepSeek-V2, section 2.1: W_DQ, W_UQ with W_QR, W_DKV with W_KR, W_UK, W_UV, W_O."""
    mla, width, heads = mla_of(spec), spec.hidden, spec.heads
    return [
        (width, mla.q_rank),
        (mla.q_rank or width, heads, mla.nope_size + mla.rope_size),
        (width, mla.kv_rank + mla.rope_size),
        (mla.kv_rank, heads, mla.nope_size),
        (mla.kv_rank, heads, mla.value_size),
        (heads, mla.value_size, width),
    ]


def latent_queries(spec: ModelSpec, x_TD, down_DQ, up_QHh):
    return jnp.einsum("TQ,QHh->THh", jnp.einsum("TD,DQ->TQ", x_TD, down_DQ) if mla_of(spec).q_rank else x_TD, up_QHh)


def chunk_flops(spec: ModelSpec, tokens: int, past: int) -> int:
    """A chunk's attention layer, with keys and values expanded from the latents of all positions."""
    mla = mla_of(spec)

    def layer(x_TD, cached_SC, down_DQ, up_QHh, latent_DC, key_CHn, value_CHv, out_HvD):
        q_THh = latent_queries(spec, x_TD, down_DQ, up_QHh)
        all_SC = jnp.concatenate([cached_SC, jnp.einsum("TD,DC->TC", x_TD, latent_DC)])
        c_SC, rotary_Sr = all_SC[:, : mla.kv_rank], all_SC[:, mla.kv_rank :]
        k_SHn, v_SHv = jnp.einsum("SC,CHn->SHn", c_SC, key_CHn), jnp.einsum("SC,CHv->SHv", c_SC, value_CHv)
        scores = jnp.einsum("THn,SHn->HTS", q_THh[..., : mla.nope_size], k_SHn)
        scores += jnp.einsum("THr,Sr->HTS", q_THh[..., mla.nope_size :], rotary_Sr)
        return jnp.einsum("THv,HvD->TD", jnp.einsum("HTS,SHv->THv", scores, v_SHv), out_HvD)

    cached = (past, mla.kv_rank + mla.rope_size)
    return flops(layer, (tokens, spec.hidden), cached, *latent_shapes(spec))


def absorbed_flops(spec: ModelSpec, context: int) -> int:
    """A decode row's attention layer: queries into the latents' space, values out of it."""
    mla = mla_of(spec)

    def layer(x_TD, cached_SC, down_DQ, up_QHh, latent_DC, key_CHn, value_CHv, out_HvD):
        q_THh = latent_queries(spec, x_TD, down_DQ, up_QHh)
        all_SC = jnp.concatenate([cached_SC, jnp.einsum("TD,DC->TC", x_TD, latent_DC)])
        q_THC = jnp.einsum("THn,CHn->THC", q_THh[..., : mla.nope_size], key_CHn)
        q_THC = jnp.concatenate([q_THC, q_THh[..., mla.nope_size :]], axis=-1)
        scores = jnp.einsum("THC,SC->HTS", q_THC, all_SC)
        values_THC = jnp.einsum("HTS,SC->THC", scores, all_SC[:, : mla.kv_rank])
        return jnp.einsum("THv,HvD->TD", jnp.einsum("THC,CHv->THv", values_THC, value_CHv), out_HvD)

    cached = (context - 1, mla.kv_rank + mla.rope_size)
    return flops(layer, (1, spec.hidden), cached, *latent_shapes(spec))


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b"])
def test_layers_with_experts_have_the_flops_of_the_papers(name):
    spec = model(name)
    traced = spec.layers * heads_flops(spec, TOKENS) + feed_forward_flops(spec, TOKENS)
    assert matmul_flops(spec, TOKENS, 0) == traced
    counts = StepCounts(decode_seqs=TOKENS, decode_kv_tokens=TOKENS, decode_window_tokens=TOKENS)
    assert totals(step_ops(spec, CHIP, Precision(), counts)).matmul_flops == traced


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3"])
def test_a_decode_row_of_latent_attention_has_the_flops_of_the_absorbed_form(name):
    spec, context = model(name), PAST
    traced = spec.layers * absorbed_flops(spec, context) + feed_forward_flops(spec, 1)
    counts = StepCounts(decode_seqs=1, decode_kv_tokens=context, decode_window_tokens=context)
    priced = totals(step_ops(spec, CHIP, Precision(), counts))
    assert priced.matmul_flops + priced.attention_flops == traced
    assert priced.matmul_flops == matmul_flops(spec, 1, 0)


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3"])
@pytest.mark.parametrize("past", [0, PAST])
def test_a_chunk_of_latent_attention_has_the_flops_of_the_expanded_form(name, past):
    """The products here compute every score, so pairs are not masked; latents of the past are expanded again."""
    spec, pairs = model(name), TOKENS * (past + TOKENS)
    traced = spec.layers * chunk_flops(spec, TOKENS, past) + feed_forward_flops(spec, TOKENS)
    counts = StepCounts(prefill_seqs=1, prefill_tokens=TOKENS, prefill_pairs=pairs, prefill_kv_tokens=past + TOKENS)
    priced = totals(step_ops(spec, CHIP, Precision(), counts))
    assert priced.matmul_flops + priced.attention_flops == traced
    if not past:
        assert priced.attention_flops == attention_flops(spec, pairs)
    assert causal_pairs(past, TOKENS) < pairs  # what a masked kernel would compute


def test_kv_of_deepseek_is_its_latents_on_every_chip():
    """DeepSeek-V3 report, section 2.1.1: 512 + 64 elements a layer."""
    spec = model("deepseek-v3")
    counts = StepCounts(decode_seqs=1, decode_kv_tokens=1000, decode_window_tokens=1000)
    for ways in (1, 8):
        cluster = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": ways})
        assert totals(step_ops(spec, cluster, Precision(), counts)).kv_read_bytes == 1000 * 61 * 576 * 2
