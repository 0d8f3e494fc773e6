"""A GPU described to XLA's compiler in text, so that a machine without one can compile for it.

`target_config` writes the `GpuTargetConfigProto` that `jax.experimental.topologies.get_topology_desc` takes as
`target_config=` for the platform `cuda`. Memory, bandwidth and cache come from our chip registry; what a streaming
multiprocessor is, which no cost model here needs, is listed below per architecture. Next: `aot_gpu`, which compiles.
"""

import dataclasses
from collections.abc import Mapping

from nanoserve.specs.chips import ChipSpec
from nanoserve.specs.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multiprocessors:
    """The streaming multiprocessors (SMs) of one chip.

    Attributes:
      capability: compute capability, major and minor.
      count: SMs enabled on the chip.
      fpus: float32 lanes of an SM.
      clock_ghz: boost clock.
      threads, registers: resident threads and 32-bit registers of an SM; a block may hold all registers.
      shared_bytes: shared memory of an SM. block_shared_bytes: what one block may ask for; 1 KiB is the system's.
      source: where the figures were read.
    """

    capability: tuple[int, int]
    count: int
    fpus: int
    clock_ghz: float
    threads: int
    registers: int
    shared_bytes: int
    block_shared_bytes: int
    source: str


_HOPPER = Multiprocessors(
    capability=(9, 0),
    count=132,
    fpus=128,
    clock_ghz=1.98,
    threads=2048,
    registers=65536,
    shared_bytes=228 * 1024,
    block_shared_bytes=227 * 1024,
    source="NVIDIA H100 whitepaper (SXM5: 132 SMs) and CUDA programming guide, technical specifications, 9.0",
)

MULTIPROCESSORS: Mapping[str, Multiprocessors] = {
    "h100_sxm": _HOPPER,
    "h100_pcie": dataclasses.replace(_HOPPER, count=114, clock_ghz=1.755),
    "h200_sxm": _HOPPER,
}

CUDA_VERSION = "13.0.0"  # of driver and runtime, the least that the pinned wheels (cuda13) run on


def target_config(chip: ChipSpec) -> str:
    """The text proto that describes `chip` to XLA.

    Args:
      chip: a GPU of the registry.

    Returns:
      A `stream_executor.GpuTargetConfigProto` in text form. The architecture carries the `a` suffix (sm_90a), without
      which the compiler has no wgmma. Without versions of driver and runtime XLA takes them for too old to capture
      library calls and loops, and leaves command buffers (CUDA graphs) out of the program.

    Raises:
      ConfigError: for a chip whose multiprocessors are not in `MULTIPROCESSORS`.

    Source:
      openxla/xla xla/stream_executor/device_description.proto.
    """
    sm = MULTIPROCESSORS.get(chip.name)
    if sm is None:
        raise ConfigError(f"no GPU target for chip '{chip.name}'.{nearest(chip.name, MULTIPROCESSORS)}")
    major, minor = sm.capability
    return f"""
gpu_device_info {{
  name: "{chip.name}"
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {major}.{minor}a"
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: ACCELERATED_FEATURES }}
  core_count: {sm.count}
  fpus_per_core: {sm.fpus}
  clock_rate_ghz: {sm.clock_ghz}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {sm.threads}
  registers_per_core_limit: {sm.registers}
  registers_per_block_limit: {sm.registers}
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {sm.block_shared_bytes}
  shared_memory_per_core: {sm.shared_bytes}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_address_bits: 64
  memory_bandwidth: {int(chip.hbm_bytes_per_s)}
  device_memory_size: {chip.hbm_bytes}
  l2_cache_size: {chip.on_chip_bytes}
  driver_version: "{CUDA_VERSION}"
  runtime_version: "{CUDA_VERSION}"
  compile_time_toolkit_version: "{CUDA_VERSION}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
device_description_str: "{chip.name}"
"""
