"""Chips and clusters as facts, every figure with its source.

Peaks are *dense* peaks of one chip; bandwidths are bytes per second; link bandwidth is what one chip can send at once
over all its links in one direction. `chip_registry` holds the shipped chips.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

Platform = Literal["gpu", "tpu", "cpu"]
LinkKind = Literal["nvlink", "pcie", "ici", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChipSpec:
    """One accelerator chip.

    Attributes:
      name: registry name, e.g. `h100_sxm`.
      platform: the JAX backend that drives it.
      device_kinds: substrings of `jax.Device.device_kind` that identify it, lower case.
      jax_devices_per_chip: JAX devices that one chip shows (TPU7x shows two).
      peak_flops_per_s: dense peak by dtype name (`bf16`, `fp8`, `int8`, `fp4`, `f32`); a missing dtype is not supported
        faster than bf16 and is priced at the bf16 peak.
      hbm_bytes, hbm_bytes_per_s: memory size and datasheet bandwidth.
      link_kind, link_bytes_per_s, link_count: interconnect, one direction, all links of a chip together.
      torus_dims: dimensions of the ICI torus; 0 where links go to a switch or a bus.
      switch_chips: chips behind one NVLink switch; None without one. network_bytes_per_s: what one chip can send beyond
        them, one direction. host_bytes_per_s: to and from host memory, one direction. None where not published.
      on_chip_bytes: L2 or VMEM. tdp_w: board power. usd_per_hour: on-demand price. None where not published.
      sources: field name -> where the figure was read.
    """

    name: str
    platform: Platform
    device_kinds: tuple[str, ...]
    peak_flops_per_s: Mapping[str, float]
    hbm_bytes: int
    hbm_bytes_per_s: float
    link_kind: LinkKind
    link_bytes_per_s: float
    link_count: int = 1
    torus_dims: int = 0
    switch_chips: int | None = None
    network_bytes_per_s: float | None = None
    host_bytes_per_s: float | None = None
    jax_devices_per_chip: int = 1
    on_chip_bytes: int | None = None
    tdp_w: float | None = None
    usd_per_hour: float | None = None
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s for matrix products in `dtype`; falls back to bf16 where the chip has no faster unit."""
        return self.peak_flops_per_s.get(dtype, self.peak_flops_per_s["bf16"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Chips of one kind in one mesh.

    Attributes:
      chip: the kind. mesh: axis name -> size, e.g. `{"tensor": 8}`; the product is the chip count.
      expert_divides: what the axis `expert` divides besides experts: `sequences`, or `heads` as `tensor` does.
    """

    chip: ChipSpec
    mesh: Mapping[str, int]
    expert_divides: Literal["sequences", "heads"] = "sequences"

    @property
    def count(self) -> int:
        """Chips in the cluster."""
        return math.prod(self.mesh.values())

    @property
    def tensor(self) -> int:
        """Tensor-parallel ways."""
        return self.mesh.get("tensor", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """Storage and arithmetic dtypes by name: `f32`, `bf16`, `fp8`, `int8`, `int4`, `fp4`.

    Attributes:
      weights: how matrices are stored. kv: how KV pages are stored. activations: between operations.
      compute: operand dtype of the matrix products (what the peak is taken for).
    """

    weights: str = "bf16"
    kv: str = "bf16"
    activations: str = "bf16"
    compute: str = "bf16"


BYTES_PER_ELEMENT: Mapping[str, float] = {"f32": 4, "f16": 2, "bf16": 2, "fp8": 1, "int8": 1, "int4": 0.5, "fp4": 0.5}

# Of stored matrices: a 16-bit scale for each group of 128 (int4: AWQ, GPTQ), an 8-bit one for each 16 (fp4: NVFP4).
SCALE_BYTES_PER_ELEMENT: Mapping[str, float] = {"int4": 2 / 128, "fp4": 1 / 16}
