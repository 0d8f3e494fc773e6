"""Where weights live on a mesh: logical axes to mesh axes, in one table.

The mesh has the four axes of `roofline.split`, neighbouring chips along the last. What each of them cuts is `RULES`:
the chips of `expert` and `tensor` together share heads, so that each layer's attention ends in one sum over them, and
its feed-forward in another; `pipeline` cuts layers (`pipeline`), and `data` nothing: a replica is an engine of its own,
on its own part of the mesh (`replicas`). The vocabulary is cut over all chips of a replica. Anything else is on every
chip. Shardings are made once and kept by the caller: making one per call slows every step without anything showing as a
recompile.

**Executed and priced.** Weights and pages lie as `roofline.split` prices them with `expert_divides = "heads"`; only the
embedding and the head of a pipeline are shared by all of its stages here, and priced as one stage's. What takes longer
than its price is the pipeline (`pipeline`).

Next: `params` (the logical axes), `pipeline`, `places` (the state).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kernels.pallas import compat
from kernels.pallas.quant_matmul.weight import QuantWeight
from nanoserve.model import params as model_params
from nanoserve.model import quantised
from nanoserve.model.params import ALONE, Params, Place, Ways
from nanoserve.model.quantised import QuantMatrix, Storage
from nanoserve.specs.chips import ClusterSpec
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec

DATA, PIPELINE, EXPERT, TENSOR = "data", "pipeline", "expert", "tensor"
AXES = (DATA, PIPELINE, EXPERT, TENSOR)  # neighbours along the last, as in `roofline.split`
SHARED = (EXPERT, TENSOR)
"""The chips that share every layer of a stage."""

RULES: Mapping[str, str | tuple[str, ...]] = {
    "layers": PIPELINE,
    "vocab": (PIPELINE, *SHARED),
    **dict.fromkeys(("kv_heads", "qkv", "heads"), SHARED),
    "experts": EXPERT,
    **dict.fromkeys(("gate_up", "ffn"), TENSOR),
}


def make_mesh(devices: Sequence[Any], axes: Mapping[str, int] | None = None) -> Mesh:
    """A mesh of all four axes, of size 1 where none is given; the compiler lays activations out over it.

    Args:
      devices: as many as the axes' product, neighbours next to each other.
      axes: name -> size; None for `tensor` alone.
    """
    sizes = {TENSOR: len(devices)} if axes is None else axes
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_axes(cluster: ClusterSpec) -> dict[str, int]:
    """The mesh of a cluster's devices, as JAX counts them: those of one chip are neighbours along `tensor`."""
    return dict(cluster.mesh) | {TENSOR: cluster.tensor * cluster.chip.jax_devices_per_chip}


def replicas(mesh: Mesh) -> list[Mesh]:
    """The mesh of each replica: the parts that the axis `data` has, each with a `data` of 1."""
    parts = np.split(mesh.devices, mesh.shape[DATA])
    return [Mesh(part, mesh.axis_names, axis_types=mesh.axis_types) for part in parts]


def ways_of(mesh: Mesh | None) -> Ways:
    """How many chips of a mesh share a layer; one where there is none."""
    if mesh is None:
        return ALONE
    return Ways(heads=mesh.shape[EXPERT] * mesh.shape[TENSOR], columns=mesh.shape[TENSOR])


def stages_of(mesh: Mesh | None) -> int:
    """How many stages a mesh cuts the layers into."""
    return 1 if mesh is None else mesh.shape[PIPELINE]


def ways_along(axes: Mapping[str, int], name: str) -> int:
    """How many parts a mesh of these axes cuts a logical axis into."""
    return math.prod(axes.get(axis, 1) for axis in _cutting(name))


def partition_spec(axes: tuple[str, ...]) -> PartitionSpec:
    """Mesh axes of an array with these logical axes."""
    return PartitionSpec(*(RULES.get(axis) for axis in axes))


def shardings(mesh: Mesh, spec: ModelSpec, how: Storage | None = None) -> Params:
    """The sharding of every weight, of matrices as `how` they are stored, if it is given.

    Raises:
      ConfigError: if an axis that is cut does not divide by the mesh.
    """
    check_divides(mesh.shape, spec)

    def placed(field: str):
        if how and field in quantised.MATRICES:
            return matrix_shardings(mesh, field, how)
        return NamedSharding(mesh, partition_spec(model_params.AXES[field]))

    return model_params.build(spec, placed, ways_of(mesh))


def matrix_shardings(mesh: Mesh, field: str, how: Storage) -> QuantMatrix:
    """The shardings of a quantised matrix's arrays."""
    named = quantised.axes_of(model_params.AXES[field], how)
    places = {name: NamedSharding(mesh, partition_spec(getattr(named, name))) for name in ("values", "scales")}
    return QuantMatrix(stack=QuantWeight(**places), how=how, cut=quantised.MATRICES[field])  # type: ignore[arg-type]


def over_columns(fn: Callable[[jax.Array], jax.Array], mesh: Mesh | None) -> Callable[[jax.Array], jax.Array]:
    """`fn` on every chip's own columns of a matrix [T, C]; on all of them where there is no mesh."""
    if mesh is None:
        return fn
    columns = PartitionSpec(None, SHARED)
    return compat.shard_map(fn, mesh=mesh, in_specs=columns, out_specs=columns)


def placer(mesh: Mesh) -> Place:
    """Puts arrays on the mesh one at a time, each chip receiving only its part.

    Of a mesh that spans processes every process has the whole array, and places the parts of its own chips.
    """

    def place(array: np.ndarray, axes: tuple[str, ...]) -> jax.Array:
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, partition_spec(axes)), lambda part: array[part]
        )

    return place


def check_divides(axes: Mapping[str, int], spec: ModelSpec) -> None:
    """Checks that every axis of a model that is cut divides by the mesh.

    Args:
      axes: of the mesh, name -> size. spec: the model as its chips execute it (`params.spread`).

    Raises:
      ConfigError: the first that does not, with its size.
    """
    sizes = {
        "kv_heads": spec.kv_heads,
        "ffn": model_params.feed_forward_width(spec),
        "experts": model_params.expert_count(spec),
        "layers": spec.layers,
        "vocab": spec.vocab,
    }
    for name, size in sizes.items():
        ways = ways_along(axes, name)
        if size % ways:
            cut = [axis for axis in _cutting(name) if axes.get(axis, 1) > 1]
            raise ConfigError(
                f"model '{spec.name}': {name} = {size} does not divide over {ways} chips (mesh {_named(axes, cut)}); "
                f"use a number of chips that divides {name}"
            )
    if axes.get(EXPERT, 1) > 1 and spec.moe is None:
        raise ConfigError(f"model '{spec.name}' has no experts for the mesh axis '{EXPERT}' to divide; use '{TENSOR}'")
    _check_pattern(axes.get(PIPELINE, 1), spec)


def _check_pattern(stages: int, spec: ModelSpec) -> None:
    """Every stage runs the same program, so the pattern of windows must begin anew in each."""
    period = spec.full_attention_every or 1
    if stages > 1 and spec.sliding_window_tokens is not None and spec.layers // stages % period:
        raise ConfigError(
            f"model '{spec.name}': of {stages} stages each has {spec.layers // stages} layers, and every {period} "
            f"layers one attends in full; use a number of stages that leaves each a multiple of {period}"
        )


def _cutting(name: str) -> tuple[str, ...]:
    axes = RULES.get(name, ())
    return (axes,) if isinstance(axes, str) else axes


def _named(axes: Mapping[str, int], names: Sequence[str]) -> str:
    return " x ".join(f"'{name}' of {axes[name]}" for name in names)
