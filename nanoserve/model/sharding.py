"""Where weights live on a mesh: logical axes to mesh axes, in one table.

Tensor parallelism cuts KV heads (with the query heads that share them), the feed-forward width and the vocabulary; a
layer then needs two all-reduces. Anything else is on every chip. Shardings are made once and kept by the caller: making
one per call slows every step without anything showing as a recompile.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kernels.pallas import compat
from kernels.pallas.quant_matmul.weight import QuantWeight
from nanoserve.model import params as model_params
from nanoserve.model import quantised
from nanoserve.model.params import Params, Place
from nanoserve.model.quantised import QuantMatrix, Storage
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec

TENSOR = "tensor"
RULES: Mapping[str, str] = dict.fromkeys(("vocab", "kv_heads", "qkv", "heads", "gate_up", "ffn"), TENSOR)


def make_mesh(devices: Sequence[Any]) -> Mesh:
    """A one-dimensional mesh for tensor parallelism; the compiler chooses how activations are laid out over it."""
    return Mesh(np.array(devices), (TENSOR,), axis_types=(AxisType.Auto,))


def partition_spec(axes: tuple[str, ...]) -> PartitionSpec:
    """Mesh axes of an array with these logical axes."""
    return PartitionSpec(*(RULES.get(axis) for axis in axes))


def shardings(mesh: Mesh, spec: ModelSpec, how: Storage | None = None) -> Params:
    """The sharding of every weight, of matrices as `how` they are stored, if it is given.

    Raises:
      ConfigError: if an axis that is cut does not divide by the mesh.
    """
    check_divides(mesh, spec)

    def placed(field: str):
        if how and field in quantised.MATRICES:
            return matrix_shardings(mesh, field, how)
        return NamedSharding(mesh, partition_spec(model_params.AXES[field]))

    return model_params.build(spec, placed, mesh.shape[TENSOR])


def matrix_shardings(mesh: Mesh, field: str, how: Storage) -> QuantMatrix:
    """The shardings of a quantised matrix's arrays."""
    named = quantised.axes_of(model_params.AXES[field], how)
    places = {name: NamedSharding(mesh, partition_spec(getattr(named, name))) for name in ("values", "scales")}
    return QuantMatrix(stack=QuantWeight(**places), how=how, cut=quantised.MATRICES[field])  # type: ignore[arg-type]


def over_columns(fn: Callable[[jax.Array], jax.Array], mesh: Mesh | None) -> Callable[[jax.Array], jax.Array]:
    """`fn` on every chip's own columns of a matrix [T, C]; on all of them where there is no mesh."""
    if mesh is None:
        return fn
    columns = PartitionSpec(None, TENSOR)
    return compat.shard_map(fn, mesh=mesh, in_specs=columns, out_specs=columns)


def placer(mesh: Mesh) -> Place:
    """Puts arrays on the mesh one at a time, each chip receiving only its part."""

    def place(array: np.ndarray, axes: tuple[str, ...]) -> jax.Array:
        return jax.device_put(array, NamedSharding(mesh, partition_spec(axes)))

    return place


def check_divides(mesh: Mesh, spec: ModelSpec) -> None:
    """Raises ConfigError if an axis of the model that is cut does not divide by the mesh."""
    ways = mesh.shape[TENSOR]
    sizes = {"kv_heads": spec.kv_heads, "ffn": model_params.feed_forward_width(spec), "vocab": spec.vocab}
    for name, size in sizes.items():
        if size % ways:
            raise ConfigError(
                f"model '{spec.name}': {name} = {size} does not divide over {ways} chips (mesh axis '{TENSOR}'); "
                f"use a number of chips that divides {name}"
            )
