"""The decoder: token ids in, logits out, one function per part, read from the top.

Covers the Llama line (llama, mistral, qwen2, qwen3, phi3): RMSNorm, rotary positions, grouped-query attention, gated
feed-forward. What differs between families is in the spec (biases, query/key norms, window) and shows here as an array
that is None. How tokens attend is a function handed in, so the same layers serve prefill, decode and mixed steps.

Norms, rotation, softmax and sums inside products are float32; what passes between parts has the weights' dtype.
Next: `rope`, then `step` (who calls this), `params` (the arrays).
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from kernels.pallas.compat import row_major
from kernels.pallas.einsum import einsum_as, einsum_f32
from nanoserve.model.attention import Attend
from nanoserve.model.params import Layer, Params
from nanoserve.model.pool import KvPool, by_layer, one_run
from nanoserve.model.rope import Rotation, rotate, rotation
from nanoserve.model.sharding import over_columns
from nanoserve.specs.models import Activation, ModelSpec

ACTIVATIONS: Mapping[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


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
      attend: writes the tokens' keys and values of a layer, and attends (`attention.PagedAttention`).
      mesh: the chips that share the weights' columns; None for one chip.

    Returns:
      The residual stream after the last layer (before the final norm), and the new pool.

    Raises:
      ValueError: the weights' columns are ordered for another number of chips.
    """
    if params.layers.ways != (mesh.size if mesh else 1):
        raise ValueError(f"weights ordered for {params.layers.ways} chips, on a mesh {mesh}")
    with jax.named_scope("embed"):
        x_TD = params.embed[tokens_T]
    turn = rotation(spec, positions_T)

    def block(carry, scanned):
        x_TD, run = carry
        layer, first = scanned
        attended_TD, run = attention(spec, layer, run, first, x_TD, turn, attend)
        x_TD += attended_TD
        x_TD += mlp(spec, layer, x_TD, mesh)
        return (x_TD, run), None

    first_pages = jnp.arange(spec.layers, dtype=jnp.int32) * pool.pages.shape[1]
    (x_TD, run), _ = jax.lax.scan(block, (x_TD, one_run(pool)), (params.layers, first_pages))
    return x_TD, by_layer(run, pool)


@jax.named_scope("head")
def logits(spec: ModelSpec, params: Params, x_RD: Float[Array, "R D"]) -> Float[Array, "R V"]:
    """Final norm and output head, in float32, on the rows that are sampled only."""
    x_RD = rms_norm(x_RD, params.final_norm, spec.norm_eps)
    if params.lm_head is None:
        return einsum_f32("RD,VD->RV", x_RD, params.embed)
    return einsum_f32("RD,DV->RV", x_RD, params.lm_head)


@jax.named_scope("attention")
def attention(
    spec: ModelSpec,
    layer: Layer,
    pool: KvPool,
    first: Int32[Array, ""],
    x_TD: Float[Array, "T D"],
    turn: Rotation,
    attend: Attend,
) -> tuple[Float[Array, "T D"], KvPool]:
    """One layer's attention: project, rotate, write and attend, project back.

    `pool` is one run of all layers' pages, [L P, ...], and `first` the layer's first page.
    """
    q_TKGh, k_TKh, v_TKh = project_qkv(spec, layer, x_TD)
    q_TKGh, k_TKh = rotate(q_TKGh, turn), rotate(k_TKh, turn)
    q_THh = q_TKGh.reshape(-1, spec.heads, spec.head_size)
    attended_THh, pool = attend(q_THh, k_TKh, v_TKh, pool, first)
    return project_out(layer, attended_THh), pool


@jax.named_scope("out")
def project_out(layer: Layer, attended_THh: Float[Array, "T H h"]) -> Float[Array, "T D"]:
    """Attended values back to the residual stream."""
    flat_TI = attended_THh.reshape(attended_THh.shape[0], -1)
    return einsum_as(attended_THh.dtype, "TI,ID->TD", flat_TI, layer.wo)


@jax.named_scope("qkv")
def project_qkv(
    spec: ModelSpec, layer: Layer, x_TD: Float[Array, "T D"]
) -> tuple[Float[Array, "T K G h"], Float[Array, "T K h"], Float[Array, "T K h"]]:
    """Queries, keys and values in one product, with the family's biases and norms."""
    qkv_TC = einsum_f32("TD,DC->TC", rms_norm(x_TD, layer.attn_norm, spec.norm_eps), layer.wqkv)
    if layer.bqkv is not None:
        qkv_TC += layer.bqkv
    qkv = qkv_TC.astype(x_TD.dtype).reshape(-1, spec.kv_heads, spec.query_groups + 2, spec.head_size)
    q_TKGh, k_TKh, v_TKh = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
    if layer.q_norm is not None and layer.k_norm is not None:
        q_TKGh = rms_norm(q_TKGh, layer.q_norm, spec.norm_eps)
        k_TKh = rms_norm(k_TKh, layer.k_norm, spec.norm_eps)
    return q_TKGh, k_TKh, v_TKh


@jax.named_scope("mlp")
def mlp(spec: ModelSpec, layer: Layer, x_TD: Float[Array, "T D"], mesh: Mesh | None = None) -> Float[Array, "T D"]:
    """The gated feed-forward: `down(act(gate(x)) * up(x))`."""
    gate_up_TC = einsum_as(x_TD.dtype, "TD,DC->TC", rms_norm(x_TD, layer.mlp_norm, spec.norm_eps), layer.w_gate_up)
    # Otherwise the TPU compiler turns the product around so that gate and up lie apart, and every layer's matrix too:
    # 50 of 64 ms in its estimate of a decode step of Llama-70B over 8 v5p.
    hidden_TF = over_columns(functools.partial(_gated, ACTIVATIONS[spec.activation]), mesh)(row_major(gate_up_TC))
    # Fused into the next product, the activation is computed again for every block of its matrix: 24% of that product's
    # estimated cycles for 32 tokens of Llama-70B over 8 v5p.
    hidden_TF = jax.lax.optimization_barrier(hidden_TF)
    return einsum_as(x_TD.dtype, "TF,FD->TD", hidden_TF, layer.w_down)


def _gated(activation: Callable[[Array], Array], gate_up: Float[Array, "T C"]) -> Float[Array, "T C/2"]:
    """One chip's columns: its part of the gate, then its part of up."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return activation(gate) * up


def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """Root-mean-square norm over the last axis, in float32.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.
    """
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * weight).astype(x.dtype)
