"""Where an engine's state lives: on which chips, and in which order in memory.

A kernel reads the pool as it lies in memory. Where XLA would lay it otherwise, it copies the pool for the kernel in
every layer, so the order is part of the state's type (docs/compile.md: no program there copies a layer's KV). Places
are made once and kept: making one per call slows every step.

Next: `step.make_steps`, which pins them.
"""

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import DTypeLike

from kernels.pallas.paged_attention.api import pool_order
from nanoserve.model import sharding
from nanoserve.model.pool import KvPool, needs_scales
from nanoserve.model.step import DeviceState
from nanoserve.specs.models import ModelSpec


def state_places(
    spec: ModelSpec, implementation: str, kv_dtype: DTypeLike, mesh: Mesh | None = None
) -> DeviceState | None:
    """Where each part of a state lives: pages with their layer and KV head, so that attention needs no link.

    Args:
      spec: the model. kv_dtype: of the pages.
      implementation: of paged attention, which may want the pages to lie in an order of its own.
      mesh: the chips; None for the default device.

    Returns:
      A state of shardings, or of formats where the order in memory matters; None where nothing does.

    Raises:
      ConfigError: if an axis that is cut does not divide by the mesh.
    """
    orders = pool_order(implementation, kv_dtype)
    if mesh is None and orders is None:
        return None
    heads = whole = SingleDeviceSharding(jax.devices()[0])
    if mesh is not None:
        sharding.check_divides(mesh.shape, spec)
        heads = NamedSharding(mesh, sharding.partition_spec(("layers", "pages", "offsets", "kv_heads")))
        whole = NamedSharding(mesh, PartitionSpec())
    pages, scales = (_stacked(order, heads) for order in orders or (None, None))
    return DeviceState(KvPool(pages, scales if needs_scales(kv_dtype) else None), whole)  # type: ignore[arg-type]


def _stacked(order: tuple[int, ...] | None, where: Sharding) -> Sharding | Format:
    """Arrays of all layers, each layer's axes in an order of their own."""
    return where if order is None else Format(Layout((0, *(axis + 1 for axis in order))), where)
