"""The decoder: token ids in, logits out, one function per part, read from the top.

Covers the Llama line (llama, mistral, qwen2, qwen3, phi3), its mixtures of experts (mixtral, qwen3_moe) and Gemma 2 and
3: RMSNorm, rotary positions, grouped-query attention, gated feed-forward. What differs between families is in the spec
and shows here as an array that is None, or as a field of the spec by its name. How tokens attend is a function handed
in, so the same layers serve prefill, decode and mixed steps.

Norms, rotation, softmax and sums inside products are float32; what passes between parts has the weights' dtype.
Next: `feed_forward`, `rope`, then `step` (who calls this), `params` (the arrays).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from kernels.pallas.compat import row_major
from kernels.pallas.einsum import einsum_f32
from nanoserve.model import feed_forward, pipeline
from nanoserve.model.attention import Attend
from nanoserve.model.params import Layer, Params
from nanoserve.model.pool import KvPool, by_layer, one_run
from nanoserve.model.product import product
from nanoserve.model.quantised import at_layer, is_quantised
from nanoserve.model.rope import Rotation, rotate, rotation
from nanoserve.model.sharding import stages_of, ways_of
from nanoserve.specs.models import ModelSpec, layer_windows

Carry = tuple[Float[Array, "T D"], KvPool]  # the residual stream, and pages


def forward(
    spec: ModelSpec,
    params: Params,
    pool: KvPool,
    tokens_T: Int32[Array, " T"],
    positions_T: Int32[Array, " T"],
    attend: Attend,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "T D"], KvPool]:
    """Runs tokens through every layer, writing their KV on the way.

    Args:
      spec, params: the model.
      pool: pages of every layer, [L, P, ...].
      tokens_T, positions_T: token ids, and their positions in their sequences.
      attend: writes the tokens' keys and values of a layer, and attends.
      mesh: the chips that share the weights; None for one chip.

    Returns:
      The residual stream after the last layer (before the final norm), and the new pool.

    Raises:
      ValueError: the weights' columns are ordered for another number of chips.
    """
    if params.layers.ways != ways_of(mesh):
        raise ValueError(f"weights ordered for {params.layers.ways}, on a mesh {mesh}")
    through = functools.partial(through_stage, spec, mesh=mesh)
    through = pipeline.through_stages(through, mesh) if mesh and stages_of(mesh) > 1 else through
    return through(params.layers, pool, embed(spec, params, tokens_T), positions_T, attend)


def through_stage(
    spec: ModelSpec,
    layers: Layer,
    pool: KvPool,
    x_TD: Float[Array, "T D"],
    positions_T: Int32[Array, " T"],
    attend: Attend,
    mesh: Mesh | None = None,
) -> Carry:
    """Tokens through some layers that follow each other: all, or those of a pipeline's stage.

    Args:
      spec, mesh: as for `forward`.
      layers, pool: the layers' weights and pages. x_TD: the residual stream. positions_T, attend: its tokens'.
    """
    turns = {window: rotation(spec, positions_T, window) for window in layer_windows(spec)}

    def layer_with(window: int | None, index: Int32[Array, ""], carry: Carry) -> Carry:
        x_TD, run = carry
        layer = one_layer(layers, index)
        first_page = index * pool.pages.shape[1]
        attended_TD, run = attention(spec, layer, run, first_page, x_TD, turns[window], attend, window, mesh)
        x_TD = added(x_TD, attended_TD)
        return added(x_TD, mlp(spec, layer, index, x_TD, mesh)), run

    x_TD, run = through_layers(spec, len(layers.attn_norm), layer_with, (x_TD, one_run(pool)))
    return x_TD, by_layer(run, pool)


@jax.named_scope("residual")
def added(x_TD: Float[Array, "T D"], out_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
    """The residual stream with what a part of a layer adds to it."""
    return x_TD + out_TD


@jax.named_scope("layer_weights")
def one_layer(layers: Layer, index: Int32[Array, ""]) -> Layer:
    """The weights of one layer; of experts and quantised matrices all layers', which kernels read where they lie."""
    stacks = {"w_experts_gate_up": layers.w_experts_gate_up, "w_experts_down": layers.w_experts_down}
    others = dataclasses.replace(layers, **dict.fromkeys(stacks))
    one = jax.tree.map(lambda stack: at_layer(stack, index), others, is_leaf=is_quantised)
    return dataclasses.replace(one, **stacks)


@jax.named_scope("embed")
def embed(spec: ModelSpec, params: Params, tokens_T: Int32[Array, " T"]) -> Float[Array, "T D"]:
    """A row of the table for each token; where rows are scaled, by a factor rounded to their own dtype, as trained."""
    x_TD = params.embed[tokens_T]
    return x_TD * jnp.asarray(spec.hidden**0.5, x_TD.dtype) if spec.scaled_embeddings else x_TD


def through_layers(
    spec: ModelSpec, layers: int, layer_with: Callable[[int | None, Array, Carry], Carry], carry: Carry
) -> Carry:
    """Applies every layer in turn, in a loop over layers, or over periods of the pattern where windows alternate.

    Kernels want to know their window, so the layers of a period stand one after the other in the loop's body; those
    left after the last whole period all have a window, and a loop of their own. The pool is carried through in place.
    Less program would be a condition in a loop over all layers, but a GPU asks the host which branch to take, in every
    layer; or a loop within the loop, but XLA for GPUs reads weights where they lie in the stack only if their place
    follows from the counter of one loop, and copies them otherwise.

    Args:
      spec: the model. layers: how many to go through, from one where the pattern of windows begins.
      layer_with: (window, index of the layer, carry) -> carry. carry: what goes into the first layer.
    """
    window = spec.sliding_window_tokens
    period = (spec.full_attention_every or 0) if window is not None else 0
    whole, rest = divmod(layers, period) if period else (0, layers)

    def one_period(index, carry: Carry) -> Carry:
        for place in range(period):
            carry = layer_with(window if place < period - 1 else None, index * period + place, carry)
        return carry

    def one_more(index, carry: Carry) -> Carry:
        return layer_with(window, whole * period + index, carry)

    if whole:
        carry = jax.lax.fori_loop(0, whole, one_period, carry)
    return jax.lax.fori_loop(0, rest, one_more, carry) if rest else carry


@jax.named_scope("head")
def logits(spec: ModelSpec, params: Params, x_RD: Float[Array, "R D"]) -> Float[Array, "R V"]:
    """Final norm and output head, in float32, on the rows that are sampled only."""
    x_RD = norm(spec, x_RD, params.final_norm)
    if params.lm_head is None:
        logits_RV = einsum_f32("RD,VD->RV", x_RD, params.embed)
    else:
        logits_RV = einsum_f32("RD,DV->RV", x_RD, params.lm_head)
    cap = spec.logits_soft_cap
    return logits_RV if cap is None else cap * jnp.tanh(logits_RV / cap)


@jax.named_scope("attention")
def attention(
    spec: ModelSpec,
    layer: Layer,
    pool: KvPool,
    first: Int32[Array, ""],
    x_TD: Float[Array, "T D"],
    turn: Rotation,
    attend: Attend,
    window: int | None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "T D"], KvPool]:
    """One layer's attention: project, rotate, write and attend, project back.

    `pool` is one run of all layers' pages, [L P, ...], and `first` the layer's first page; `window` is the layer's.
    """
    q_TKGh, k_TKh, v_TKh = project_qkv(spec, layer, x_TD, mesh)
    q_TKGh, k_TKh = rotate(q_TKGh, turn), rotate(k_TKh, turn)
    q_THh = q_TKGh.reshape(-1, spec.heads, spec.head_size)
    attended_THh, pool = attend(q_THh, k_TKh, v_TKh, pool, first, window)
    return ended(spec, project_out(layer, attended_THh, mesh), layer.post_attn_norm), pool


@jax.named_scope("out")
def project_out(layer: Layer, attended_THh: Float[Array, "T H h"], mesh: Mesh | None = None) -> Float[Array, "T D"]:
    """Attended values back to the residual stream."""
    flat_TI = attended_THh.reshape(attended_THh.shape[0], -1)
    return product(attended_THh.dtype, flat_TI, layer.wo, mesh)


@jax.named_scope("qkv")
def project_qkv(
    spec: ModelSpec, layer: Layer, x_TD: Float[Array, "T D"], mesh: Mesh | None = None
) -> tuple[Float[Array, "T K G h"], Float[Array, "T K h"], Float[Array, "T K h"]]:
    """Queries, keys and values in one product, with the family's biases and norms."""
    normed_TD = norm(spec, x_TD, layer.attn_norm)
    if layer.bqkv is None:
        # In rows, as in the feed-forward: otherwise the TPU compiler turns the product and every layer's matrix around.
        qkv_TC = row_major(product(x_TD.dtype, normed_TD, layer.wqkv, mesh))
    else:
        qkv_TC = product(jnp.float32, normed_TD, layer.wqkv, mesh) + layer.bqkv
    qkv = qkv_TC.astype(x_TD.dtype).reshape(-1, spec.kv_heads, spec.query_groups + 2, spec.head_size)
    q_TKGh, k_TKh, v_TKh = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
    if layer.q_norm is not None and layer.k_norm is not None:
        q_TKGh = norm(spec, q_TKGh, layer.q_norm)
        k_TKh = norm(spec, k_TKh, layer.k_norm)
    return q_TKGh, k_TKh, v_TKh


@jax.named_scope("mlp")
def mlp(
    spec: ModelSpec, layer: Layer, index: Int32[Array, ""], x_TD: Float[Array, "T D"], mesh: Mesh | None = None
) -> Float[Array, "T D"]:
    """The layer's feed-forward, dense or of experts."""
    normed_TD = norm(spec, x_TD, layer.mlp_norm)
    if spec.moe is None:
        out_TD = feed_forward.dense(layer, spec.activation, normed_TD, mesh)
    else:
        out_TD = feed_forward.experts(layer, index, spec.moe, spec.activation, normed_TD, mesh)
    return ended(spec, out_TD, layer.post_mlp_norm)


def ended(spec: ModelSpec, out_TD: Float[Array, "T D"], weight: Float[Array, " D"] | None) -> Float[Array, "T D"]:
    """What attention or feed-forward adds to the residual stream: normed, in the families that have a norm there."""
    return out_TD if weight is None else norm(spec, out_TD, weight)


@jax.named_scope("norm")
def norm(spec: ModelSpec, x: Float[Array, "... D"], weight: Float[Array, " D"]) -> Float[Array, "... D"]:
    """The family's root-mean-square norm over the last axis; one is added to zero-centred weights in float32."""
    return rms_norm(x, weight.astype(jnp.float32) + 1 if spec.zero_centred_norms else weight, spec.norm_eps)


def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """Root-mean-square norm over the last axis, in float32.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.
    """
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * weight).astype(x.dtype)
