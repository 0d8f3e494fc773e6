"""Random weights drawn where they will live: no tensor passes through the host, and no layer waits for another.

For models whose shapes matter and whose answers do not: the host of a large model's chips would draw for minutes, and
then send. Scales are those of `weights.random` (variance 1 / fan_in, norms that multiply by 1); the values are others,
because they come from JAX's generator.

Invariants: an array depends on (key, its name, its shape) alone. How many chips share it changes where a weight is,
never which weights the model has. One program makes one array, a layer at a time: beside what stays, the device holds
what one layer needs on its way.

Next: `params` (what the arrays mean), `quantised` (what they are in fewer bits).
"""

import dataclasses
import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, DTypeLike, Key

from kernels.pallas.quant_matmul import schemes
from kernels.pallas.quant_matmul.quantise import quantise
from nanoserve.model import quantised
from nanoserve.model.params import AXES, Params, Ways, build, feed_forward_width, shape_of, spread
from nanoserve.model.quantised import Storage
from nanoserve.model.sharding import matrix_shardings, partition_spec, ways_of
from nanoserve.specs.models import ModelSpec


def random_params(
    spec: ModelSpec,
    key: Key[Array, ""],
    dtype: DTypeLike = jnp.bfloat16,
    *,
    how: Storage | None = None,
    mesh: Mesh | None = None,
) -> Params:
    """Draws all weights of a model.

    Args:
      spec: the model, of a family that is executed.
      key: decides every value.
      dtype: of the arrays. Drawn in float32 and rounded, matrices that are quantised afterwards as well.
      how: matrices are stored and multiplied; None leaves them in `dtype`.
      mesh: chips that share the model; None for the default device.

    Raises:
      ConfigError: no decoder computes the model, or it cannot be cut or quantised so.
    """
    ways = ways_of(mesh)

    def make(field: str) -> Any:
        program, wanted = drawing(spec, field, dtype, how, mesh)
        drawn = program(jax.random.fold_in(key, zlib.crc32(field.encode())))
        return dataclasses.replace(wanted, stack=drawn) if quantised.is_quantised(wanted) else drawn

    return build(spread(spec, ways.heads), make, ways)


def drawing(spec: ModelSpec, field: str, dtype: DTypeLike, how: Storage | None, mesh: Mesh | None) -> tuple[Any, Any]:
    """The jitted program that draws one array from its key, and what `params.abstract` says of it.

    Args:
      spec, dtype, how, mesh: as for `random_params`. field: a key of `params.AXES`.
    """
    ways, axes = ways_of(mesh), AXES[field]
    wanted: Any = jax.ShapeDtypeStruct(shape_of(spread(spec, ways.heads), field), dtype)
    place: Any = NamedSharding(mesh, partition_spec(axes)) if mesh else None
    one = functools.partial(_one, spec, field, ways, dtype)
    if how and field in quantised.MATRICES:
        wanted = quantised.abstract(field, wanted.shape, how, ways.columns)
        place = matrix_shardings(mesh, field, how).stack if mesh else None
        group = wanted.stack.group if schemes.scheme(how.scheme).group else None
        one = _then(one, functools.partial(quantise, scheme=how.scheme, group=group))
    draw = functools.partial(_of_layers, one, spec.layers) if axes[0] == "layers" else one
    return jax.jit(draw, out_shardings=place), wanted


def _then(first, second):
    return lambda key: second(first(key))


def _of_layers(one, layers: int, key: Key[Array, ""]) -> Any:
    """`one` of every layer, one after the other, each with a key of its own."""
    return jax.lax.map(lambda index: one(jax.random.fold_in(key, index)), jnp.arange(layers))


def _one(spec: ModelSpec, field: str, ways: Ways, dtype: DTypeLike, key: Key[Array, ""]) -> jax.Array:
    """An array, of one layer where there are layers, with its columns in the order that `ways` chips want."""
    whole = shape_of(spec, field)
    shape = whole[1:] if AXES[field][0] == "layers" else whole
    if "norm" in field:
        return jnp.full(shape, 0.0 if spec.zero_centred_norms else 1.0, dtype)
    deviation = _fan_in(spec, field) ** -0.5
    if AXES[field][-1] == "qkv":
        heads = (*shape[:-1], spec.kv_heads, spec.query_groups + 2, spec.head_size)
        return _heads_for(ways, spec, _normal(key, heads, deviation, dtype))
    if AXES[field][-1] == "gate_up":
        halves = (*shape[:-1], 2, feed_forward_width(spec))
        return _halves_for(ways, _normal(key, halves, deviation, dtype))
    return _normal(key, shape, deviation, dtype)


def _fan_in(spec: ModelSpec, field: str) -> int:
    """How many terms a matrix's sums have; embeddings and biases are scaled as if they were sums over the width D."""
    return spec.hidden if field in ("embed", "bqkv") else shape_of(spec, field)[-2]


def _normal(key: Key[Array, ""], shape: tuple[int, ...], deviation: float, dtype: DTypeLike) -> jax.Array:
    drawn = jax.random.normal(key, shape, jnp.float32) * deviation
    # Rounded for certain: XLA may leave out a conversion there and back, and quantise what was never stored.
    limits = jnp.finfo(dtype)
    return jax.lax.reduce_precision(drawn, limits.nexp, limits.nmant).astype(dtype)


def _heads_for(ways: Ways, spec: ModelSpec, qkv: jax.Array) -> jax.Array:
    """Columns [..., K, G + 2, h] with a KV head for each chip: its share of the queries, copies of key and value."""
    inputs, (G, h) = qkv.shape[:-3], (spec.query_groups, spec.head_size)
    executed = spread(spec, ways.heads)
    queries = qkv[..., :G, :].reshape(*inputs, executed.kv_heads, executed.query_groups, h)
    kv = jnp.repeat(qkv[..., G:, :], executed.kv_heads // spec.kv_heads, axis=-3)
    return jnp.concatenate([queries, kv], axis=-2).reshape(*inputs, -1)


def _halves_for(ways: Ways, gate_up: jax.Array) -> jax.Array:
    """Columns [..., 2, F] as each chip's part of the gate and then its part of up."""
    *inputs, halves, width = gate_up.shape
    parts = gate_up.reshape(*inputs, halves, ways.columns, width // ways.columns)
    return jnp.swapaxes(parts, -3, -2).reshape(*inputs, halves * math.prod(parts.shape[-2:]))
