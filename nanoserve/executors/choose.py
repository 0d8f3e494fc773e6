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


def choose_executor(
    asked: str, model: ModelSpec, cluster: ClusterSpec, precision: Precision, *beside: ClusterSpec
) -> Choice:
    """Decides.

    Args:
      asked: `auto`, `jax` or `roofline`.
      model, cluster, precision: what would have to run, where, and how. beside: clusters that run it as well, on chips
        of their own.

    Raises:
      ConfigError: `jax` was asked for and cannot run here; the message says why.
    """
    chips = " + ".join(f"{each.count} x {each.chip.name}" for each in (cluster, *beside))
    simulated = f"{chips} (simulated)"
    if asked == "roofline":
        return Choice("roofline", "simulated because the roofline executor was asked for", simulated)
    obstacle = jax_obstacle(model, cluster, precision, *beside)
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


def jax_obstacle(model: ModelSpec, cluster: ClusterSpec, precision: Precision, *beside: ClusterSpec) -> str:
    """Why JAX cannot execute a model here, or an empty string."""
    obstacle = _device_obstacle(cluster, *beside)
    for each in (cluster, *beside):
        obstacle = obstacle or program_obstacle(model, each, precision) or _memory_obstacle(model, each, precision)
    return obstacle


def program_obstacle(model: ModelSpec, cluster: ClusterSpec, precision: Precision) -> str:
    """Why there is no program for a model on a mesh, wherever its chips are, or an empty string."""
    from nanoserve.executors import precisions
    from nanoserve.model.params import supports
    from nanoserve.model.sharding import TENSOR, device_axes

    ways = device_axes(cluster)[TENSOR]
    return supports(model) or mesh_obstacle(model, cluster) or precisions.obstacle(model, cluster.chip, precision, ways)


def mesh_obstacle(model: ModelSpec, cluster: ClusterSpec) -> str:
    """Why a model cannot be cut over a mesh, or an empty string; every other mesh is executed."""
    from nanoserve.model.params import spread
    from nanoserve.model.sharding import EXPERT, TENSOR, check_divides, device_axes

    axes = device_axes(cluster)
    ways = axes.get(EXPERT, 1) * axes[TENSOR]
    if axes.get(EXPERT, 1) > 1 and cluster.expert_divides == "sequences":
        return (
            "the mesh axis 'expert' divides sequences, which is priced but not executed; Cluster.expert_divides = "
            "'heads' is both"
        )
    try:
        check_divides(axes, spread(model, ways))
    except ConfigError as error:
        return str(error)
    return ""


def _device_obstacle(cluster: ClusterSpec, *beside: ClusterSpec) -> str:
    import jax

    chip, count = cluster.chip, cluster.count + sum(each.count for each in beside)
    if any(each.chip != chip for each in beside):
        return "pools of different chips are priced but not executed"
    wanted = count * chip.jax_devices_per_chip
    try:
        devices = jax.devices(chip.platform)
    except RuntimeError:  # JAX has no such backend here
        devices = []
    here = [d for d in devices if detect(d.device_kind, chip.platform) == chip]
    if len(here) < wanted:
        present = jax.devices()
        return (
            f"the config asks for {count} x {chip.name} and this machine has {len(present)} x {present[0].device_kind}"
        )
    return ""


def _memory_obstacle(model: ModelSpec, cluster: ClusterSpec, precision: Precision) -> str:
    from nanoserve.roofline.memory import num_pages

    try:
        num_pages(model, cluster, precision)
    except CapacityError as error:
        return str(error)
    return ""
