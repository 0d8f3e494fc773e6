"""A model's matrices in fewer bits: which ones, what stands for one in `Params`, and how it is cut over chips.

Every product of a layer's attention and feed-forward may have a quantised weight. Embedding, head, router, norms and
biases stay as they are, as in published quantised checkpoints and in the cost model (`roofline.storage.rest_dtype`).

A matrix lies as its kernels want it, outputs before inputs, all layers in one stack; a step names its layer and leaves
the stack where it is, because to a kernel XLA would hand a copy of the layer: three times the traffic of reading it.
Next: `product` (how it is multiplied), `quantising` (how it is made), `kernels.pallas.quant_matmul.api` (the contract).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int32

from kernels.pallas.quant_matmul import schemes
from kernels.pallas.quant_matmul.weight import QuantWeight
from nanoserve.specs.errors import ConfigError

Cut = Literal["inputs", "outputs"]
MATRICES: Mapping[str, Cut] = {"wqkv": "outputs", "wo": "inputs", "w_gate_up": "outputs", "w_down": "inputs"}
"""The arrays that may be quantised, by which of their axes tensor parallelism cuts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage:
    """How a model's matrices are stored and multiplied.

    Attributes:
      scheme: int8, int4 or fp8.
      rows: int8 or fp8, to quantise rows of activations before each product; None to leave them as they are.
      implementation: of the products, a name that `product.choose_product` returned.
    """

    scheme: str
    rows: str | None = None
    implementation: str = "xla"


@struct.dataclass
class QuantMatrix:
    """One matrix of every layer.

    Attributes:
      stack: of all layers, [L, F, D] and [L, G, F].
      index: the layer that is multiplied, inside the loop over layers; None in `Params`.
      how: how it is multiplied. cut: the axis that chips share.
    """

    stack: QuantWeight
    index: Int32[Array, ""] | None = None
    how: Storage = struct.field(pytree_node=False, default=Storage(scheme="int8"))
    cut: Cut = struct.field(pytree_node=False, default="outputs")


def is_quantised(leaf: Any) -> bool:
    """Whether a node of `Params` is a matrix of fewer bits, which counts as one leaf."""
    return isinstance(leaf, QuantMatrix)


def at_layer(stack: Any, index: Int32[Array, ""]) -> Any:
    """One layer of an array [L, ...], or of a quantised matrix, which stays where it is."""
    if is_quantised(stack):
        return dataclasses.replace(stack, index=index)
    return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)


def group_of(scheme: str, inputs: int) -> int:
    """Inputs that share a scale: all, or the scheme's group, or the largest smaller one that divides `inputs`.

    Args:
      scheme: a name in `schemes.SCHEMES`. inputs: of the part of a matrix that one chip holds.

    Raises:
      ConfigError: if no group divides them.
    """
    most = schemes.group_of(scheme)
    if most is None:
        return inputs
    fitting = [group for group in schemes.GROUPS if group <= most and inputs % group == 0]
    if not fitting:
        raise ConfigError(
            f"{scheme} weights have a scale for each {', '.join(map(str, schemes.GROUPS))} inputs, and a chip's part "
            f"of a matrix has {inputs}, a multiple of none: use int8, or fewer chips"
        )
    return max(fitting)


def abstract(field: str, shape: tuple[int, ...], how: Storage, ways: int) -> QuantMatrix:
    """Shapes of a matrix without memory.

    Args:
      field: a key of `MATRICES`. shape: [L, D, F] of all chips together. how: as stored. ways: chips that share it.

    Raises:
      ConfigError: the scheme's groups do not fit the matrix.
    """
    L, D, F = shape
    known, cut = schemes.scheme(how.scheme), MATRICES[field]
    per_channel = known.group is None
    groups = 1 if per_channel else D // group_of(how.scheme, D // ways if cut == "inputs" else D)
    stack = QuantWeight(
        values=jax.ShapeDtypeStruct((L, F, D), jnp.dtype(known.values_dtype)),  # pyright: ignore[reportArgumentType]
        scales=jax.ShapeDtypeStruct((L, groups, F), jnp.dtype(known.scale_dtype)),  # pyright: ignore[reportArgumentType]
    )
    return QuantMatrix(stack=stack, how=how, cut=cut)


def axes_of(axes: tuple[str, ...], how: Storage) -> QuantWeight:
    """Logical axes of a stack's arrays; scales of groups are cut with the inputs that they serve.

    Args:
      axes: of the matrix unquantised, (layers, inputs, outputs). how: as stored.
    """
    layers, inputs, outputs = axes
    groups = "groups" if schemes.scheme(how.scheme).group is None else inputs
    named: Any = {"values": (layers, outputs, inputs), "scales": (layers, groups, outputs)}
    return QuantWeight(**named)
