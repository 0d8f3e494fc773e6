"""One chip's part of a plan: which tokens, how many passes over which layers, and how wide everything is stored.

`ops` and `collectives` make their operations from this. Invariant: without the axes `expert` and `pipeline`, all counts
are the plan's own, exact integers.

Next: `ops`.
"""

import dataclasses

from nanoserve.roofline.counts import Count, StepCounts
from nanoserve.roofline.matrices import AttentionShape, attention_shape
from nanoserve.roofline.split import Split, idle_share, split_of
from nanoserve.roofline.storage import dtype_bytes, kv_bytes_per_chip, rest_dtype
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec, full_attention_layers
from nanoserve.specs.sizes import stored_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What one chip, the busiest, does of a plan.

    Attributes:
      model, cluster, precision, split: what runs, where, in which dtypes.
      counts: of the sequences of this chip's expert group, even parts of the plan's.
      tokens_per_pass: that all groups together put through a layer at once.
      passes: over the chip's layers, all steps of the plan: each step has as many microbatches as stages.
      attention: its shape on one chip. kv_layer_bytes: of one token in one layer.
      activation_bytes, rest_bytes: of an element between operations, and of what is never quantised.
    """

    model: ModelSpec
    cluster: ClusterSpec
    precision: Precision
    split: Split
    counts: StepCounts
    tokens_per_pass: Count
    passes: Count
    attention: AttentionShape
    kv_layer_bytes: int
    activation_bytes: float
    rest_bytes: float

    @property
    def new_tokens(self) -> Count:
        """Tokens through each of the chip's layers, all steps together."""
        return self.counts.new_tokens

    @property
    def idle(self) -> Count | None:
        """`Op.idle` of what every token goes through: a step of fewer tokens than stages is not cut."""
        stages = self.split.pipeline
        return None if stages == 1 else idle_share(stages, stages) * (self.tokens_per_pass >= 1)

    @property
    def attention_idle(self) -> Count | None:
        """The same of attention, which is linear in the positions that it attends: as if it were always cut."""
        stages = self.split.pipeline
        return None if stages == 1 else idle_share(stages, stages)

    def layers(self, layers: int | None = None) -> int:
        """How many of `layers` layers of a kind the chip has; of all layers, without a number."""
        return self.split.layers(self.model.layers if layers is None else layers)

    def over_layers(self, in_full: Count, in_window: Count) -> Count:
        """A count of one layer, summed over the chip's: those that attend in full and those with a sliding window."""
        full = full_attention_layers(self.model)
        return self.layers(full) * in_full + self.layers(self.model.layers - full) * in_window

    def matrix_bytes(self, elements: int, quantised: bool) -> float:
        """Bytes of a stored matrix, scales included; whole numbers stay integers."""
        size = stored_bytes(elements, self.precision.weights) if quantised else elements * self.rest_bytes
        return int(size) if size == int(size) else size


def work_of(model: ModelSpec, cluster: ClusterSpec, precision: Precision, counts: StepCounts) -> Work:
    """Returns the busiest chip's part of a plan.

    Raises:
      ConfigError: unknown dtype or mesh axis.
    """
    split = split_of(cluster)
    stages = split.pipeline
    return Work(
        model=model,
        cluster=cluster,
        precision=precision,
        split=split,
        counts=_of_one_group(counts, split.sequence_groups),
        # of several steps, none has chunks or drafts
        tokens_per_pass=_part(counts.decode_seqs + counts.drafted_tokens + counts.prefill_tokens, stages),
        passes=counts.steps * stages,
        attention=attention_shape(model, split.head_ways),
        kv_layer_bytes=kv_bytes_per_chip(model, precision, split.head_ways, model.layers),
        activation_bytes=dtype_bytes(precision.activations),
        rest_bytes=dtype_bytes(rest_dtype(precision)),
    )


def _of_one_group(counts: StepCounts, groups: int) -> StepCounts:
    """Sequences are divided, steps are not."""
    if groups == 1:
        return counts
    names = (field.name for field in dataclasses.fields(StepCounts) if field.name != "steps")
    return dataclasses.replace(counts, **{name: getattr(counts, name) / groups for name in names})


def _part(count: Count, parts: int) -> Count:
    return count if parts == 1 else count / parts
