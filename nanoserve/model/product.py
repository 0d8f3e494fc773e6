"""Products of activations with a layer's matrices, whatever they are stored as.

Chips share either a matrix's outputs, of which each then has its own, or its inputs, over which results are added up.
Of plain matrices the compiler sees to that; a kernel never sees a mesh, so each chip multiplies its own part by itself
(`shard_map`, as in `attention`). Next: `quantised`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, DTypeLike, Float

from kernels.pallas import compat
from kernels.pallas.choosing import Choice
from kernels.pallas.einsum import einsum_as
from kernels.pallas.quant_matmul import api, schemes
from kernels.pallas.quant_matmul.weight import QuantWeight
from nanoserve.model import quantised
from nanoserve.model.params import shape_of, spread
from nanoserve.model.quantised import MATRICES, QuantMatrix, Storage
from nanoserve.model.sharding import SHARED
from nanoserve.specs.models import ModelSpec

PRODUCTS: Mapping[str | None, Any] = {None: api.quant_matmul, "int8": api.int8_matmul, "fp8": api.fp8_matmul}
_TOKENS = 8  # whether a kernel serves a product does not depend on them


def product(
    dtype: DTypeLike,
    x_TD: Float[Array, "T D"],
    matrix: Float[Array, "D F"] | QuantMatrix,
    mesh: Mesh | None = None,
) -> Float[Array, "T F"]:
    """`x @ matrix`, summed in float32 and rounded to `dtype`; by each chip, where they share inputs, before the sum.

    Args:
      dtype: of the result. x_TD: activations.
      matrix: one layer's. mesh: chips that share it; None for one.
    """
    if not isinstance(matrix, QuantMatrix):
        return einsum_as(dtype, "TD,DF->TF", x_TD, matrix)

    def on_one_chip(x_TD, stack, layer):
        how = matrix.how
        multiply = PRODUCTS[how.rows]
        return multiply(x_TD, stack, layer=layer, out_dtype=dtype, implementation=how.implementation)

    def on_each_chip(x_TD, stack, layer):
        return jax.lax.psum(on_one_chip(x_TD, stack, layer), SHARED)

    arguments = x_TD, matrix.stack, matrix.index
    if mesh is None:
        return on_one_chip(*arguments)
    whole, columns = PartitionSpec(), PartitionSpec(None, SHARED)
    if matrix.cut == "outputs":
        stack_specs = QuantWeight(values=PartitionSpec(None, SHARED), scales=PartitionSpec(None, None, SHARED))  # type: ignore[arg-type]
        in_specs, out_specs, on_chips = (whole, stack_specs, whole), columns, on_one_chip
    else:
        groups = PartitionSpec(None, SHARED) if matrix.stack.groups > 1 else whole
        stack_specs = QuantWeight(values=PartitionSpec(None, None, SHARED), scales=groups)  # type: ignore[arg-type]
        in_specs, out_specs, on_chips = (columns, stack_specs, whole), whole, on_each_chip
    return compat.shard_map(on_chips, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(*arguments)


def choose_product(asked: str, spec: ModelSpec, how: Storage, target: str, *, dtype: DTypeLike, ways: int) -> Choice:
    """Which implementation multiplies a model's quantised matrices, and why.

    Args:
      asked: `auto`, or the name of an implementation.
      spec, how: the model, and how it is stored. target: what will run it, as `compat.kernel_target` says.
      dtype: of activations. ways: chips that share the matrices.

    Raises:
      ConfigError: a name that does not exist, or that does not serve the model; matrices that cannot be stored so.
    """
    return api.choose(asked, target, [_on_one_chip(field, spec, how, dtype, ways) for field in MATRICES])


def _on_one_chip(field: str, spec: ModelSpec, how: Storage, dtype: DTypeLike, ways: int):
    """Shapes of one chip's product with its part of a layer's matrix."""
    matrix = quantised.abstract(field, shape_of(spread(spec, ways), field), how, ways)
    (_, F, D), (_, G, _) = matrix.stack.values.shape, matrix.stack.scales.shape
    if matrix.cut == "outputs":
        F //= ways
    else:
        D, G = D // ways, G if G == 1 else G // ways
    shaped: Any = jax.ShapeDtypeStruct
    values, scales = shaped((F, D), matrix.stack.values.dtype), shaped((G, F), matrix.stack.scales.dtype)
    multiplied = dtype if how.rows is None else schemes.scheme(how.rows).values_dtype
    return shaped((_TOKENS, D), jnp.dtype(multiplied)), QuantWeight(values=values, scales=scales)
