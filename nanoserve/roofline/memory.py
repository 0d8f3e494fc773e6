"""What fits in a chip's memory: weights, activations, the runtime's share, and pages for the rest.

Per chip: `utilization x HBM - weights - activation peak - runtime` is room for KV. An explicit page count overrides all
of this. Invariant: the numbers are of the busiest chip, so what fits here fits everywhere.

Next: `nanoserve.engine.pages`, which hands the pages out.
"""

import dataclasses
import math

from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.counts import Count
from nanoserve.roofline.matrices import layer_matrices
from nanoserve.roofline.split import Split, split_of
from nanoserve.roofline.storage import dtype_bytes, kv_bytes_per_chip, kv_scale_bytes_per_chip, rest_dtype
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import CapacityError
from nanoserve.specs.models import ModelSpec
from nanoserve.specs.sizes import parameter_counts, stored_bytes

_GIB = 2**30
_LOGIT_BYTES = 4
_MOST_WAYS = 64
_WORTHWHILE_KV_SHARE = 0.1  # of what may be used: advice that leaves less would not serve anyone
_SMALLER_WEIGHTS = ("fp8", "int8", "int4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """One chip's memory, in bytes.

    Attributes:
      hbm_bytes: of the chip. planned_bytes: the share of it that may be used.
      weight_bytes, activation_bytes, runtime_bytes: what is taken before KV.
      kv_bytes: what is left; negative when the rest does not fit.
      page_bytes: one page, all the chip's layers. kv_bytes_per_token: one token, factors of quantised KV included.
      kv_groups: groups of chips with sequences of their own (the mesh axis `expert`, where it divides sequences).
    """

    hbm_bytes: int
    planned_bytes: int
    weight_bytes: int
    activation_bytes: int
    runtime_bytes: int
    page_bytes: int
    kv_bytes_per_token: int
    kv_groups: int = 1

    @property
    def kv_bytes(self) -> int:
        """Room for KV."""
        return self.planned_bytes - self.weight_bytes - self.activation_bytes - self.runtime_bytes

    @property
    def num_pages(self) -> int:
        """Pages that fit, of all groups of a replica together."""
        return self.kv_groups * max(0, self.kv_bytes // self.page_bytes)


def memory_plan(
    model: ModelSpec,
    cluster: ClusterSpec,
    precision: Precision,
    *,
    page_tokens: int = 16,
    hbm_utilization: float = 0.9,
    max_step_tokens: int = 2048,
    max_seqs: int = 256,
    draft: ModelSpec | None = None,
) -> MemoryPlan:
    """Returns how a chip's memory is divided.

    Args:
      model, cluster, precision: what is held, where, in which dtypes.
      page_tokens, hbm_utilization, max_step_tokens, max_seqs: as in `engine.config.EngineConfig`.
      draft: a model that guesses for the other: its weights lie beside, and its part of every page.

    Raises:
      ConfigError: unknown dtype or mesh axis.
    """
    split, chip = split_of(cluster), cluster.chip
    reserve = constants_for(chip, precision, "calibrated")
    parts = split.head_ways, split.pipeline
    models = (model,) if draft is None else (model, draft)
    token_bytes = sum(kv_bytes_per_chip(m, precision, *parts) for m in models)
    token_bytes += sum(kv_scale_bytes_per_chip(m, precision, *parts) for m in models)
    return MemoryPlan(
        hbm_bytes=chip.hbm_bytes,
        planned_bytes=int(hbm_utilization * chip.hbm_bytes),
        weight_bytes=sum(weight_bytes_per_chip(m, precision, split) for m in models),
        activation_bytes=activation_peak_bytes(model, precision, split.tensor, max_step_tokens, max_seqs),
        runtime_bytes=reserve.runtime_bytes + (reserve.collectives_bytes if split.replica_chips > 1 else 0),
        page_bytes=page_tokens * token_bytes,
        kv_bytes_per_token=token_bytes,
        kv_groups=split.sequence_groups,
    )


def num_pages(
    model: ModelSpec,
    cluster: ClusterSpec,
    precision: Precision,
    *,
    page_tokens: int = 16,
    hbm_utilization: float = 0.9,
    max_step_tokens: int = 2048,
    max_seqs: int = 256,
    draft: ModelSpec | None = None,
) -> int:
    """Returns how many pages of KV fit; at least 1. Arguments as for `memory_plan`.

    Raises:
      CapacityError: not even one page fits; says what would.
    """
    config = {
        "page_tokens": page_tokens,
        "hbm_utilization": hbm_utilization,
        "max_step_tokens": max_step_tokens,
        "max_seqs": max_seqs,
    }
    plan = memory_plan(model, cluster, precision, **config, draft=draft)
    if plan.num_pages:
        return plan.num_pages
    chips = f"{split_of(cluster).replica_chips} x {cluster.chip.name}"
    raise CapacityError(
        f"model '{model.name}' with {precision.weights} weights leaves no room for KV on {chips}: "
        f"of {plan.planned_bytes / _GIB:.1f} GiB a chip (utilization {hbm_utilization:g}), weights take "
        f"{plan.weight_bytes / _GIB:.1f}, activations {plan.activation_bytes / _GIB:.1f}, the runtime "
        f"{plan.runtime_bytes / _GIB:.1f}. {_what_fits(model, cluster, precision, config)}"
    )


def max_batch(plan: MemoryPlan, context_tokens: int) -> int:
    """Returns how many sequences of `context_tokens` tokens fit at once."""
    of_a_group = plan.num_pages // plan.kv_groups
    return plan.kv_groups * (of_a_group // math.ceil(context_tokens * plan.kv_bytes_per_token / plan.page_bytes))


def max_context(plan: MemoryPlan, batch: int) -> int:
    """Returns the most tokens that each of `batch` sequences can have at once, in whole pages."""
    of_a_group, sequences = plan.num_pages // plan.kv_groups, math.ceil(batch / plan.kv_groups)
    return of_a_group // sequences * (plan.page_bytes // plan.kv_bytes_per_token)


def headroom_bytes(plan: MemoryPlan, contexts: Count, batches: Count) -> Count:
    """Returns the bytes a chip has left with so many sequences of such a context; negative where they do not fit.

    Numbers, or arrays that broadcast: contexts in rows and batches in columns give the whole envelope at once. A chip
    holds its group's sequences, the most that an even division gives it, each in whole pages.

    Args:
      plan: from `memory_plan`. contexts: tokens of each sequence. batches: sequences at once.
    """
    sequences = -(-batches // plan.kv_groups)
    pages = -(-contexts * plan.kv_bytes_per_token // plan.page_bytes)
    return plan.kv_bytes - sequences * pages * plan.page_bytes


def weight_bytes_per_chip(model: ModelSpec, precision: Precision, split: Split | int = 1) -> int:
    """Returns the weights that one chip holds, as stored; `specs.sizes.weight_bytes` where there is one chip.

    Matrices and the vocabulary are divided by `tensor`, experts also by `expert`, layers by `pipeline`; norms, biases
    and learned positions of a stage are on each of its chips. Of several stages the first holds the embedding and the
    last the head: the fuller of the two counts.

    Args:
      model, precision: what is stored, and how.
      split: how the mesh divides it; a number stands for tensor-parallel ways alone.
    """
    split = Split(tensor=split) if isinstance(split, int) else split
    rest, parameters = dtype_bytes(rest_dtype(precision)), parameter_counts(model)
    matrices = others = 0
    for matrix in layer_matrices(model, split.head_ways, split.tensor):
        held = split.experts(matrix.experts) if matrix.experts else 1
        elements = split.layers(matrix.layers) * matrix.rows * matrix.columns * held
        if matrix.quantised:
            matrices += elements
        else:
            others += elements
    first, last = split.columns(parameters.embedding) + parameters.positions, split.columns(parameters.head)
    if split.pipeline == 1:
        ends = split.columns(parameters.embedding + parameters.head) + parameters.positions
    else:
        ends = max(first, last or split.columns(parameters.embedding))  # a tied head is a copy of the table
    vectors = split.layers(model.layers) * parameters.vectors_per_layer + parameters.final_norm
    return math.ceil(stored_bytes(matrices, precision.weights)) + math.ceil((others + ends + vectors) * rest)


def activation_peak_bytes(
    model: ModelSpec, precision: Precision, ways: int, max_step_tokens: int, max_seqs: int
) -> int:
    """Estimates the most that values between operations take at once on one chip.

    The larger of the widest layer operation over a full step (residual stream and its norm, the gated projection in and
    out) and the float32 logits of every sequence.
    """
    ffn = model.moe.ffn * (model.moe.top_k + model.moe.shared) if model.moe else model.ffn
    wide = (3 if model.gated_mlp else 2) * math.ceil(ffn / ways)
    layer = max_step_tokens * (3 * model.hidden + wide) * dtype_bytes(precision.activations)
    logits = 2 * max_seqs * model.vocab * _LOGIT_BYTES  # as computed, and as probabilities
    return math.ceil(max(layer, logits))


def _what_fits(model: ModelSpec, cluster: ClusterSpec, precision: Precision, config: dict) -> str:
    """Advice: the fewest more chips, or the widest smaller weights, that leave room."""

    def fits(ways: int, weights: str) -> bool:
        mesh = dataclasses.replace(cluster, mesh={**cluster.mesh, "tensor": ways})
        smaller = dataclasses.replace(precision, weights=weights)
        plan = memory_plan(model, mesh, smaller, **config)
        return plan.kv_bytes >= _WORTHWHILE_KV_SHARE * plan.planned_bytes

    ways, advice = cluster.tensor, []
    others = split_of(cluster).replica_chips // ways
    while ways < _MOST_WAYS:
        ways *= 2
        if fits(ways, precision.weights):
            advice.append(f"{others * ways} chips (Cluster.mesh = {dict(cluster.mesh) | {'tensor': ways}})")
            break
    narrower = (d for d in _SMALLER_WEIGHTS if dtype_bytes(d) < dtype_bytes(precision.weights))
    if smaller := next((d for d in narrower if fits(cluster.tensor, d)), None):
        advice.append(f"{smaller} weights (Precision.weights = '{smaller}')")
    return (
        f"It fits with {' or '.join(advice)}." if advice else f"It does not fit on {_MOST_WAYS} of these chips either."
    )
