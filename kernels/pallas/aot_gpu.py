"""Compiles a JAX function for an H100 that is not there, and says what its Mosaic kernels use.

Needs four wheels beside the pinned jax, in an environment of their own (`make aot-gpu`), each without its dependencies:
jax-cuda13-plugin and jax-cuda13-pjrt of jax's version, nvidia-cuda-nvcc (ptxas) and nvidia-nvvm (libdevice).
What comes back is correctness, memory and resources, never speed: XLA cannot tune its matrix products without a device.

Mosaic reads from the environment where to leave ptxas's log, so compile in one thread at a time. Next: `gpu_target`,
which describes the chip to the compiler.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from kernels.pallas.gpu_target import target_config
from nanoserve.specs import chip_registry
from nanoserve.specs.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourceReport:
    """What a program's Mosaic kernels use: the largest figure of any of them.

    Attributes:
      kernels: how many were compiled; calls of one lowering share a kernel.
      registers: per thread at launch; `set_max_registers` moves them between warpgroups afterwards.
      spill_bytes: stores of registers that did not fit, per thread.
      shared_bytes: shared memory of a thread block, barriers left out.
      wgmma_serialised: whether ptxas made every matrix product wait for the one before.
      seconds: to compile, tracing and lowering left out.
    """

    kernels: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    wgmma_serialised: bool
    seconds: float


def available() -> bool:
    """Whether the compiler for NVIDIA GPUs is installed."""
    return importlib.util.find_spec("jax_cuda13_plugin") is not None


def compile_for_h100(fn: Callable[..., Any], *abstract_args: jax.ShapeDtypeStruct) -> ResourceReport:
    """Compiles `fn` for one H100 and reports what its Mosaic kernels use.

    Args:
      fn: what `jax.jit` takes; jitted functions included.
      abstract_args: shapes and dtypes of its arguments.

    Raises:
      ConfigError: where the compiler is not installed.
    """
    return compiled_for_h100(fn, *abstract_args)[1]


def compiled_for_h100(fn: Callable[..., Any], *abstract_args: jax.ShapeDtypeStruct):
    """As `compile_for_h100`, with the compiled program (`as_text()`, `memory_analysis()`) before the report."""
    sharding = one_h100()
    args = [jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=sharding) for arg in abstract_args]
    with mosaic_logs() as folder:
        lowered = jax.jit(fn).trace(*args).lower()
        start = time.perf_counter()
        compiled = lowered.compile()
        return compiled, report(folder, time.perf_counter() - start)


@functools.cache
def one_h100() -> jax.sharding.Sharding:
    """A sharding over one H100 that is not there."""
    if not available():
        raise ConfigError("the compiler for NVIDIA GPUs is not installed: run `make aot-gpu`")
    from jax.experimental import topologies

    target = target_config(chip_registry.chip("h100_sxm"))
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
    except NotImplementedError as error:  # jax drops a plugin that finds no driver, unless told not to look for one
        raise ConfigError("the compiler for NVIDIA GPUs wants JAX_PLATFORMS=cpu in the environment") from error
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("device",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


@contextlib.contextmanager
def mosaic_logs() -> Iterator[pathlib.Path]:
    """A folder where Mosaic leaves the logs of what is compiled meanwhile; a cached program would leave none."""
    caching = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"MOSAIC_GPU_DUMP_TO": folder, "MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_RESOURCES": "1"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield pathlib.Path(folder)
        finally:
            jax.config.update("jax_enable_compilation_cache", caching)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def report(folder: pathlib.Path, seconds: float) -> ResourceReport:
    """The figures in the logs that `mosaic_logs` left, of a compilation that took so long."""
    logs = [path.read_text() for path in sorted(folder.glob("*.ptxas"))]
    resources = [path.read_text() for path in sorted(folder.glob("*.resources.txt"))]

    def largest(pattern: str, texts: list[str]) -> int:
        return max((int(found) for text in texts for found in re.findall(pattern, text)), default=0)

    return ResourceReport(
        kernels=len(logs),
        registers=largest(r"Used (\d+) registers", logs),
        spill_bytes=largest(r"(\d+) bytes spill stores", logs),
        shared_bytes=largest(r"smem_scratch_bytes=(\d+)", resources),
        wgmma_serialised=any("wgmma" in log and "serialized" in log for log in logs),
        seconds=seconds,
    )
