"""The feed-forward of a layer: one for all tokens, or experts of which each token goes through a few.

A router gives every expert a probability; a token keeps the `top_k` most probable. Its (token, expert) pairs are
ordered by expert, so that each expert's tokens lie together and one grouped product over all experts does the work of
the chosen ones only. How many pairs an expert has is data: shapes do not depend on it, and nothing is dropped.
TPUs have a kernel for that product; for other chips XLA multiplies every pair with every expert's matrix and keeps one.

Chips share the width of every feed-forward: each computes its own columns, and one sum over the chips ends the layer.
Experts may be divided over groups of chips besides (the mesh axis `expert`): a group computes the pairs of its own, for
all tokens, which every chip has. Router and order are computed by every chip. Next: `decoder`, which calls this.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Int32

from kernels.pallas import compat
from kernels.pallas.compat import row_major
from kernels.pallas.einsum import einsum_f32
from nanoserve.model.params import Layer
from nanoserve.model.product import product
from nanoserve.model.quantised import is_quantised
from nanoserve.model.sharding import EXPERT, SHARED, TENSOR, over_columns
from nanoserve.specs.models import Activation, MoeSpec

ACTIVATIONS: Mapping[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class Routing(NamedTuple):
    """Which experts each token goes through: A of them a token, R = T A pairs in all.

    Attributes:
      weights_TA: factor of each chosen expert's output, float32.
      order_R: pairs ordered by expert; pair `t A + a` is token t's choice a.
      counts_E: pairs of each expert, in this order.
      pairs: how many these are in all; the others, at the end, are other chips'. None where there are no others.
    """

    weights_TA: Float[Array, "T A"]
    order_R: Int32[Array, " R"]
    counts_E: Int32[Array, " E"]
    pairs: Int32[Array, ""] | None = None


def dense(
    layer: Layer, activation: Activation, normed_TD: Float[Array, "T D"], mesh: Mesh | None = None
) -> Float[Array, "T D"]:
    """The gated feed-forward: `down(act(gate(x)) * up(x))`."""
    with jax.named_scope("gate_up"):
        gate_up_TC = product(normed_TD.dtype, normed_TD, layer.w_gate_up, mesh)
    if not is_quantised(layer.w_gate_up):
        # Otherwise XLA for GPUs makes a GELU part of the product, in a form that wants the matrix copied out of the
        # stack. A product in a kernel is out of its reach, and what the kernel leaves to be added up may be fused.
        gate_up_TC = jax.lax.optimization_barrier(gate_up_TC)
    # Otherwise the TPU compiler turns the product around so that gate and up lie apart, and every layer's matrix too
    # (docs/compile.md, what was tried).
    hidden_TF = over_columns(functools.partial(_gated, ACTIVATIONS[activation]), mesh)(row_major(gate_up_TC))
    # Fused into the next product, the activation would be computed again for every block of its matrix (likewise).
    hidden_TF = jax.lax.optimization_barrier(hidden_TF)
    with jax.named_scope("down"):
        return product(normed_TD.dtype, hidden_TF, layer.w_down, mesh)


def experts(
    layer: Layer,
    index: Int32[Array, ""],
    moe: MoeSpec,
    activation: Activation,
    normed_TD: Float[Array, "T D"],
    mesh: Mesh | None = None,
) -> Float[Array, "T D"]:
    """What a token's chosen experts make of it, weighted and summed. Experts are gated feed-forwards.

    Args:
      layer: with the experts of all layers. index: which layer's.
      moe, activation: the model's. normed_TD: tokens. mesh: chips that share the experts; None for one.
    """
    with jax.named_scope("router"):
        routing = route(moe, einsum_f32("TD,DE->TE", normed_TD, layer.router))
    on_one_chip = functools.partial(_chosen_experts, ACTIVATIONS[activation])
    arguments = normed_TD, routing, index, layer.w_experts_gate_up, layer.w_experts_down
    if mesh is None:
        return on_one_chip(*arguments)

    def on_each_chip(normed_TD, routing, index, w_gate_up_LEDC, w_down_LEFD):
        mine = _of_group(routing, jax.lax.axis_index(EXPERT), w_gate_up_LEDC.shape[1])
        return jax.lax.psum(on_one_chip(normed_TD, mine, index, w_gate_up_LEDC, w_down_LEFD), SHARED)

    whole = PartitionSpec()
    columns, rows = PartitionSpec(None, EXPERT, None, TENSOR), PartitionSpec(None, EXPERT, TENSOR)
    in_specs = (whole, whole, whole, columns, rows)
    return compat.shard_map(on_each_chip, mesh=mesh, in_specs=in_specs, out_specs=whole)(*arguments)


@jax.named_scope("route")
def route(moe: MoeSpec, scores_TE: Float[Array, "T E"]) -> Routing:
    """Chooses by probability, the lower index first where two are equal."""
    weights_TA, chosen_TA = jax.lax.top_k(jax.nn.softmax(scores_TE, axis=-1), moe.top_k)
    if moe.normalised:
        weights_TA /= jnp.sum(weights_TA, axis=-1, keepdims=True)
    chosen_R = chosen_TA.reshape(-1)
    return Routing(weights_TA, jnp.argsort(chosen_R), jnp.bincount(chosen_R, length=moe.experts).astype(jnp.int32))


def _of_group(routing: Routing, group: Int32[Array, ""], held: int) -> Routing:
    """The routing as a group of chips sees it that holds `held` experts: their pairs first."""
    if held == len(routing.counts_E):
        return routing
    counts_E = jax.lax.dynamic_slice_in_dim(routing.counts_E, group * held, held)
    before = jnp.sum(jnp.where(jnp.arange(len(routing.counts_E)) < group * held, routing.counts_E, 0))
    return Routing(routing.weights_TA, jnp.roll(routing.order_R, -before), counts_E, jnp.sum(counts_E))


def _chosen_experts(
    activation: Callable[[Array], Array],
    x_TD: Float[Array, "T D"],
    routing: Routing,
    index: Int32[Array, ""],
    w_gate_up_LEDC: Float[Array, "L E D C"],
    w_down_LEFD: Float[Array, "L E F D"],
) -> Float[Array, "T D"]:
    """One chip's columns of the experts that it holds: its part of the sum over experts and their width."""
    T, A = routing.weights_TA.shape
    x_RD = x_TD[routing.order_R // A]
    with jax.named_scope("experts_gate_up"):
        gate_up_RC = _grouped(x_TD.dtype, x_RD, index, w_gate_up_LEDC, routing.counts_E)
    hidden_RF = _gated(activation, gate_up_RC)
    with jax.named_scope("experts_down"):
        out_RD = _grouped(jnp.float32, hidden_RF, index, w_down_LEFD, routing.counts_E)
    if routing.pairs is not None:  # what a grouped product makes of rows without a group is not said
        out_RD = jnp.where(jnp.arange(T * A)[:, None] < routing.pairs, out_RD, 0.0)
    # Back in the order of tokens, each adds up its own: never a sum whose order depends on neighbours.
    out_TAD = jnp.zeros_like(out_RD).at[routing.order_R].set(out_RD, unique_indices=True).reshape(T, A, -1)
    return jnp.sum(out_TAD * routing.weights_TA[:, :, None], axis=1).astype(x_TD.dtype)


def _grouped(
    dtype: DTypeLike,
    x_RK: Float[Array, "R K"],
    index: Int32[Array, ""],
    w_LEKN: Float[Array, "L E K N"],
    counts_E: Int32[Array, " E"],
) -> Float[Array, "R N"]:
    """Each expert's rows times its matrix in layer `index`; numbers as in `einsum_as`.

    To the TPU's kernel the experts of all layers are groups of one product, of which those of other layers have no
    rows. Given one layer's matrices it wants all of them copied out of the stack first, chosen or not.
    """
    precision = jax.lax.Precision.HIGHEST if x_RK.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    product = functools.partial(jax.lax.ragged_dot, precision=precision, preferred_element_type=jnp.dtype(dtype))

    def of_stack(x_RK, index, w_LEKN, counts_E):
        L, E, *matrix = w_LEKN.shape
        counts_LE = jax.lax.dynamic_update_slice(jnp.zeros(L * E, jnp.int32), counts_E, (index * E,))
        return product(x_RK, w_LEKN.reshape(L * E, *matrix), counts_LE)

    def of_layer(x_RK, index, w_LEKN, counts_E):
        return product(x_RK, jax.lax.dynamic_index_in_dim(w_LEKN, index, keepdims=False), counts_E)

    return jax.lax.platform_dependent(x_RK, index, w_LEKN, counts_E, tpu=of_stack, default=of_layer)


@jax.named_scope("activation")
def _gated(activation: Callable[[Array], Array], gate_up: Float[Array, "T C"]) -> Float[Array, "T C/2"]:
    """One chip's columns: its part of the gate, then its part of up."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return activation(gate) * up
