"""Every mesh is executed, or refused in a sentence that says why; which of them serve SmolLM2 on eight devices."""

import itertools
import math

import pytest

from nanoserve.executors.choose import choose_executor, mesh_obstacle
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model
from tests.executors.factories import F32

SMOLLM2, MIXTRAL, LLAMA = model("smollm2-135m"), model("mixtral-8x7b"), model("llama-3.1-70b")


def cluster(**axes: int) -> ClusterSpec:
    return ClusterSpec(chip=chip("cpu_2core"), mesh=axes, expert_divides="heads")


@pytest.mark.parametrize(
    ("spec", "axes"),
    [
        (LLAMA, {"tensor": 8}),
        (LLAMA, {"tensor": 16}),  # two chips for each KV head
        (LLAMA, {"tensor": 4, "pipeline": 2}),
        (MIXTRAL, {"expert": 8}),
        (MIXTRAL, {"expert": 4, "tensor": 2}),
        (MIXTRAL, {"pipeline": 2, "expert": 2, "tensor": 2}),
    ],
)
def test_a_mesh_that_divides_a_model_is_executed(spec, axes):
    assert mesh_obstacle(spec, cluster(**axes)) == ""


@pytest.mark.parametrize(
    ("spec", "axes", "says"),
    [
        (SMOLLM2, {"tensor": 8}, "9 query heads and 3 KV heads cannot be shared evenly by 8 chips"),
        (SMOLLM2, {"tensor": 2}, "kv_heads = 3 does not divide over 2 chips"),
        (SMOLLM2, {"pipeline": 8}, "layers = 30 does not divide over 8 chips"),
        (SMOLLM2, {"pipeline": 5}, "vocab = 49152 does not divide over 5 chips"),
        (LLAMA, {"expert": 2}, "has no experts for the mesh axis 'expert' to divide; use 'tensor'"),
        (MIXTRAL, {"expert": 16}, "experts = 8 does not divide over 16 chips"),
    ],
)
def test_a_mesh_that_does_not_says_why(spec, axes, says):
    assert says in mesh_obstacle(spec, cluster(**axes))


def test_sequences_divided_over_the_axis_expert_are_priced_only():
    meant = ClusterSpec(chip=chip("cpu_2core"), mesh={"expert": 8})
    assert "Cluster.expert_divides = 'heads' is both" in mesh_obstacle(MIXTRAL, meant)


def test_the_most_devices_of_eight_that_share_smollm2_are_six():
    shapes = (
        dict(zip(("pipeline", "tensor"), sizes, strict=True)) for sizes in itertools.product(range(1, 9), repeat=2)
    )
    legal = [axes for axes in shapes if math.prod(axes.values()) <= 8 and not mesh_obstacle(SMOLLM2, cluster(**axes))]
    most = [axes for axes in legal if math.prod(axes.values()) == 6]
    assert most == [{"pipeline": 2, "tensor": 3}, {"pipeline": 6, "tensor": 1}]
    assert max(math.prod(axes.values()) for axes in legal) == 6
    assert {"pipeline": 2, "tensor": 1} in legal  # so that four replicas of it use all eight


def test_a_cluster_that_is_not_here_is_refused_where_jax_was_asked_for():
    with pytest.raises(ConfigError, match="the config asks for 4096 x cpu_2core"):
        choose_executor("jax", LLAMA, cluster(tensor=4096), F32)
