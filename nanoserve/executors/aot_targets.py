"""Chips that are not there: what the vendors' compilers need to know of a cluster to compile for it.

Both compilers live in environments of their own (`make aot-tpu`, `make aot-gpu`) and want JAX itself on the CPU.
Next: `aot`, which compiles.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax

from kernels.pallas.gpu_target import target_config
from nanoserve.specs.chips import ChipSpec, ClusterSpec
from nanoserve.specs.errors import ConfigError

FLAT = {1: "1x1", 2: "1x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}
CUBES = {1: "1x1x1", 2: "1x1x2", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"}
TOPOLOGIES: Mapping[str, tuple[str, Mapping[int, str]]] = {
    "tpu_v5e": ("v5e", FLAT),
    "tpu_v5p": ("v5p", CUBES),
    "tpu_v6e": ("v6e", FLAT),
}  # v4 and v7x show two devices a chip to the compiler, and a mesh here has one
MOST_GPUS = 8  # of one host, which is what the compiler is told of


def devices(cluster: ClusterSpec) -> list[Any]:
    """Returns the devices of a cluster that is not there, for a mesh to compile over.

    Raises:
      ConfigError: no compiler is installed, or none knows so many of these chips.
    """
    makers: Mapping[str, Callable[[ClusterSpec], list[Any]]] = {"tpu": _tpus, "gpu": _gpus}
    if cluster.chip.platform not in makers:
        raise ConfigError(f"Cluster.chip = '{cluster.chip.name}': nothing is compiled ahead of time for it")
    return makers[cluster.chip.platform](cluster)


def topology_name(chip: ChipSpec, count: int) -> str:
    """Returns what libtpu calls `count` of these chips, such as `v5p:2x2x2`.

    Raises:
      ConfigError: it has no name for them, or this project does not know it.
    """
    if chip.name not in TOPOLOGIES:
        raise ConfigError(
            f"Cluster.chip = '{chip.name}': programs are compiled ahead of time for {', '.join(TOPOLOGIES)} only"
        )
    family, shapes = TOPOLOGIES[chip.name]
    if count not in shapes:
        raise ConfigError(f"{count} x {chip.name} is no slice that can be compiled for; use {_or(shapes)} chips")
    return f"{family}:{shapes[count]}"


def _tpus(cluster: ClusterSpec) -> list[Any]:
    name = topology_name(cluster.chip, cluster.count)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "compiling for a TPU needs libtpu, which is not installed. Install the extra: pip install -e '.[tpu-aot]'"
        )
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology_name=name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise
        raise ConfigError(
            "libtpu is in use by another process of this machine, and serves one at a time. Wait for it to end; if "
            f"there is none, remove the file it names: {error}"
        ) from error


def _gpus(cluster: ClusterSpec) -> list[Any]:
    if cluster.count > MOST_GPUS:
        raise ConfigError(f"{cluster.count} x {cluster.chip.name}: a host of at most {MOST_GPUS} can be compiled for")
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ConfigError(
            "compiling for an NVIDIA GPU needs its compilers, which are not installed. `make aot-gpu` makes an "
            "environment that has them, .venv-aot-gpu: run this command with its python"
        )
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(cluster.chip), topology=f"1x1x{cluster.count}"
        )
    except NotImplementedError as error:  # jax drops a plugin that finds no driver, unless told not to look for one
        raise ConfigError("the compiler for NVIDIA GPUs wants JAX_PLATFORMS=cpu in the environment") from error
    return list(topology.devices)


def _or(numbers: Mapping[int, str]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}"
