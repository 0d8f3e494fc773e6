"""How a mesh divides a model and its work: what one chip holds and which sequences it sees.

| axis | divides | a step then |
|---|---|---|
| `tensor` | heads, columns, vocabulary | sums the residual stream twice a layer |
| `expert` | experts, and sequences everywhere else | sends tokens to their experts and back |
| the same, dividing `heads` | experts, and what `tensor` divides elsewhere | sums over both axes instead |
| `pipeline` | layers, in stages | runs as many microbatches as stages, one after the other |
| `data` | requests | is a step of one replica |

Neighbouring chips share `tensor`, then `expert`, then `pipeline`, then `data`.

**Data.** A replica is an engine of its own with its share of the requests. Counts, bytes and seconds are those of one
replica; rates and costs of the cluster are `data` times that.

**Pipeline.** A step is cut into microbatches, as many as there are stages, so that every stage has one to work on; each
stage's weights are read once for each of them. A step ends before the next begins, as in the executed engine
(`model.pipeline`), because the scheduler wants to know its tokens: of `2 S - 1` turns a stage works in S and waits in
the others. That is in the price (`Op.idle`), but not in speed-of-light times: an engine that keeps several batches
under way fills its pipeline and comes closer to those. A step of fewer tokens than stages is not cut: it takes S turns.

**Expert.** Sequences are divided evenly over the groups of the axis, so with fewer sequences than groups a price is too
low. Experts are not: `moe` expects how many tokens the busiest group gets. With `expert_divides = "heads"` every group
has all sequences, and a share of the heads (vLLM: expert parallelism without data-parallel attention).

**What JAX executes** (`model.sharding`) is divided as priced here with one exception: sequences are not divided over
`expert`, that is priced only.

Next: `links` (what the axes are wired with), `matrices`, `ops`.
"""

import dataclasses
import math
from typing import Literal

from nanoserve.specs.chips import ClusterSpec
from nanoserve.specs.errors import ConfigError, nearest

AXES = ("tensor", "expert", "pipeline", "data")  # from neighbours outwards


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Sizes of the axes, 1 where the mesh has none; `expert_divides` as in `ClusterSpec`."""

    tensor: int = 1
    expert: int = 1
    pipeline: int = 1
    data: int = 1
    expert_divides: Literal["sequences", "heads"] = "sequences"

    @property
    def head_ways(self) -> int:
        """Chips that share the heads, the vocabulary, and all matrices but the experts'."""
        return self.tensor * (self.expert if self.expert_divides == "heads" else 1)

    @property
    def sequence_groups(self) -> int:
        """Groups of chips with sequences of their own."""
        return self.expert if self.expert_divides == "sequences" else 1

    @property
    def replica_chips(self) -> int:
        """Chips of one replica, which price a step together."""
        return self.tensor * self.expert * self.pipeline

    def heads(self, heads: int) -> int:
        """Heads that the busiest chip holds; fewer heads than chips are copied, and a head is never cut."""
        return math.ceil(heads / self.head_ways)

    def columns(self, columns: int) -> int:
        """Columns, or vocabulary rows, that the busiest chip holds."""
        return math.ceil(columns / self.head_ways)

    def layers(self, layers: int) -> int:
        """Layers of one kind in the fullest stage; kinds are spread evenly over the stages."""
        return math.ceil(layers / self.pipeline)

    def experts(self, experts: int) -> int:
        """Experts that the fullest group holds."""
        return math.ceil(experts / self.expert)


def split_of(cluster: ClusterSpec) -> Split:
    """Returns the axes of a cluster's mesh.

    Raises:
      ConfigError: an axis that does not exist, or a size below 1.
    """
    for axis, size in cluster.mesh.items():
        if axis not in AXES:
            raise ConfigError(f"mesh {dict(cluster.mesh)}: no axis '{axis}' is priced.{nearest(axis, AXES)}")
        if size < 1:
            raise ConfigError(f"mesh {dict(cluster.mesh)}: axis '{axis}' has size {size}; must be at least 1")
    return Split(**cluster.mesh, expert_divides=cluster.expert_divides)


def idle_share(stages: int, microbatches: int) -> float:
    """Returns how long a stage waits while microbatches pass through an empty pipeline, as a share of what it works.

    Source: Huang et al., "GPipe", 2019, section 2.3, where it is a share of all turns.
    """
    return (stages - 1) / microbatches
