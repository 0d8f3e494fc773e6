"""Execute or simulate: the decision, and the one line that says why.

`auto` executes with JAX where the experiment's chips are present and the model fits, and simulates elsewhere. An
explicit `jax` that cannot be served is an error with the same reason.
"""

import dataclasses
from typing import Literal

from nanoserve.specs.chip_registry import detect
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import CapacityError, ConfigError
from nanoserve.specs.models import ModelSpec


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which executor runs, and a sentence for every output.

    Attributes:
      executor: `jax` or `roofline`. line: "executed on ..." or "simulated because ...".
      device_kind: what runs it, as JAX calls it, or the chip that is simulated.
    """

    executor: Literal["jax", "roofline"]
    line: str
    device_kind: str


def choose_executor(asked: str, model: ModelSpec, cluster: ClusterSpec, precision: Precision) -> Choice:
    """Decides.

    Args:
      asked: `auto`, `jax` or `roofline`.
      model, cluster, precision: what would have to run, where, and how.

    Raises:
      ConfigError: `jax` was asked for and cannot run here; the message says why.
    """
    chips = f"{cluster.count} x {cluster.chip.name}"
    simulated = f"{chips} (simulated)"
    if asked == "roofline":
        return Choice("roofline", "simulated because the roofline executor was asked for", simulated)
    obstacle = jax_obstacle(model, cluster, precision)
    if obstacle and asked == "jax":
        raise ConfigError(
            f"cannot execute {model.name} on {chips} with JAX: {obstacle}. Use --executor=auto to simulate it"
        )
    if obstacle:
        return Choice("roofline", f"simulated because {obstacle}", simulated)
    import jax

    kind = jax.devices(cluster.chip.platform)[0].device_kind
    why = "was asked for" if asked == "jax" else "the chips are here and the model fits"
    return Choice("jax", f"executed with JAX on {chips} ({kind}): {why}", kind)


def jax_obstacle(model: ModelSpec, cluster: ClusterSpec, precision: Precision) -> str:
    """Why JAX cannot execute a model here, or an empty string."""
    return (
        mesh_obstacle(cluster)
        or _device_obstacle(cluster)
        or _decoder_obstacle(model, cluster, precision)
        or _memory_obstacle(model, cluster, precision)
    )


def _decoder_obstacle(model: ModelSpec, cluster: ClusterSpec, precision: Precision) -> str:
    from nanoserve.executors import precisions
    from nanoserve.model.params import supports

    ways = cluster.count * cluster.chip.jax_devices_per_chip
    return supports(model) or precisions.obstacle(model, cluster.chip, precision, ways)


def mesh_obstacle(cluster: ClusterSpec) -> str:
    """Why a mesh cannot be executed wherever its chips are, or an empty string."""
    others = [axis for axis, size in cluster.mesh.items() if axis != "tensor" and size > 1]
    return f"the mesh axis '{others[0]}' is priced but not executed yet" if others else ""


def _device_obstacle(cluster: ClusterSpec) -> str:
    import jax

    chip = cluster.chip
    wanted = cluster.count * chip.jax_devices_per_chip
    try:
        devices = jax.devices(chip.platform)
    except RuntimeError:  # JAX has no such backend here
        devices = []
    here = [d for d in devices if detect(d.device_kind, chip.platform) == chip]
    if len(here) < wanted:
        present = jax.devices()
        return (
            f"the config asks for {cluster.count} x {chip.name} and this machine has "
            f"{len(present)} x {present[0].device_kind}"
        )
    return ""


def _memory_obstacle(model: ModelSpec, cluster: ClusterSpec, precision: Precision) -> str:
    from nanoserve.roofline.memory import num_pages

    try:
        num_pages(model, cluster, precision)
    except CapacityError as error:
        return str(error)
    return ""
