"""Quantises a model's matrices as they are read: a layer at a time, on the device, into a stack that is there already.

So the host holds one layer's matrix, and the device what stays, and a layer of one matrix before it is rounded. Next:
`quantised` (what is made), `kernels.pallas.quant_matmul.quantise` (the rounding).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int32

from kernels.pallas.quant_matmul import schemes
from kernels.pallas.quant_matmul.quantise import quantise
from kernels.pallas.quant_matmul.weight import QuantWeight
from nanoserve.model import quantised
from nanoserve.model.params import AXES, Quantise
from nanoserve.model.quantised import QuantMatrix, Storage
from nanoserve.model.sharding import matrix_shardings, partition_spec, ways_of


def quantiser(how: Storage, mesh: Mesh | None = None) -> Quantise:
    """What `params.from_tensors` makes matrices with.

    Args:
      how: they are stored. mesh: chips that share them; None for the default device.
    """
    ways = ways_of(mesh).columns

    def make(field: str, shape: tuple[int, ...], read: Callable[[int], np.ndarray]) -> QuantMatrix:
        wanted = quantised.abstract(field, shape, how, ways)
        places = matrix_shardings(mesh, field, how).stack if mesh else None
        of_layer = NamedSharding(mesh, partition_spec(AXES[field][1:])) if mesh else None
        group = wanted.stack.group if schemes.scheme(how.scheme).group else None
        with_layer = jax.jit(
            functools.partial(_with_layer, scheme=how.scheme, group=group), donate_argnums=0, out_shardings=places
        )
        stack = jax.jit(functools.partial(_zeros, wanted.stack), out_shardings=places)()
        for index in range(shape[0]):
            # Waited for, or the host would run ahead and fill the device with layers that are not rounded yet.
            stack = jax.block_until_ready(with_layer(stack, jax.device_put(read(index), of_layer), index))
        return dataclasses.replace(wanted, stack=stack)

    return make


def _zeros(shapes: QuantWeight) -> QuantWeight:
    return jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), shapes)


def _with_layer(
    stack: QuantWeight, w_DF: Float[Array, "D F"], index: Int32[Array, ""], *, scheme: str, group: int | None
) -> QuantWeight:
    """The stack with one layer's matrix in its place. Donates `stack`."""
    layer = quantise(w_DF, scheme, group)
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, index, 0), stack, layer)
