"""What fits in a chip's memory: weights, activations, the runtime's share, and pages for the rest.

Per chip: `utilization x HBM - weights - activation peak - runtime` is room for KV. An explicit page count overrides all
of this. Invariant: the numbers are of the busiest chip, so what fits here fits everywhere.

Next: `nanoserve.engine.pages`, which hands the pages out.
"""

import dataclasses
import math

from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.ops import (
    dtype_bytes,
    kv_bytes_per_chip,
    kv_scale_bytes_per_chip,
    layer_matrices,
    rest_dtype,
    tensor_ways,
)
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import CapacityError
from nanoserve.specs.models import ModelSpec
from nanoserve.specs.sizes import parameter_counts

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
      page_bytes: one page, all layers. kv_bytes_per_token: one token, factors of quantised KV included.
    """

    hbm_bytes: int
    planned_bytes: int
    weight_bytes: int
    activation_bytes: int
    runtime_bytes: int
    page_bytes: int
    kv_bytes_per_token: int

    @property
    def kv_bytes(self) -> int:
        """Room for KV."""
        return self.planned_bytes - self.weight_bytes - self.activation_bytes - self.runtime_bytes

    @property
    def num_pages(self) -> int:
        """Pages that fit."""
        return max(0, self.kv_bytes // self.page_bytes)


def memory_plan(
    model: ModelSpec,
    cluster: ClusterSpec,
    precision: Precision,
    *,
    page_tokens: int = 16,
    hbm_utilization: float = 0.9,
    max_step_tokens: int = 2048,
    max_seqs: int = 256,
) -> MemoryPlan:
    """Returns how a chip's memory is divided.

    Args:
      model, cluster, precision: what is held, where, in which dtypes.
      page_tokens, hbm_utilization, max_step_tokens, max_seqs: as in `engine.types.EngineConfig`.

    Raises:
      ConfigError: unknown dtype, or a mesh axis other than `tensor`.
    """
    ways, chip = tensor_ways(cluster), cluster.chip
    reserve = constants_for(chip, precision, "calibrated")
    token_bytes = kv_bytes_per_chip(model, precision, ways) + kv_scale_bytes_per_chip(model, precision, ways)
    return MemoryPlan(
        hbm_bytes=chip.hbm_bytes,
        planned_bytes=int(hbm_utilization * chip.hbm_bytes),
        weight_bytes=weight_bytes_per_chip(model, precision, ways),
        activation_bytes=activation_peak_bytes(model, precision, ways, max_step_tokens, max_seqs),
        runtime_bytes=reserve.runtime_bytes + (reserve.collectives_bytes if ways > 1 else 0),
        page_bytes=page_tokens * token_bytes,
        kv_bytes_per_token=token_bytes,
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
    plan = memory_plan(model, cluster, precision, **config)
    if plan.num_pages:
        return plan.num_pages
    ways = cluster.tensor
    raise CapacityError(
        f"model '{model.name}' with {precision.weights} weights leaves no room for KV on {ways} x {cluster.chip.name}: "
        f"of {plan.planned_bytes / _GIB:.1f} GiB a chip (utilization {hbm_utilization:g}), weights take "
        f"{plan.weight_bytes / _GIB:.1f}, activations {plan.activation_bytes / _GIB:.1f}, the runtime "
        f"{plan.runtime_bytes / _GIB:.1f}. {_what_fits(model, cluster, precision, config)}"
    )


def max_batch(plan: MemoryPlan, context_tokens: int) -> int:
    """Returns how many sequences of `context_tokens` tokens fit at once."""
    return plan.num_pages // math.ceil(context_tokens * plan.kv_bytes_per_token / plan.page_bytes)


def max_context(plan: MemoryPlan, batch: int) -> int:
    """Returns the most tokens that each of `batch` sequences can have at once, in whole pages."""
    return plan.num_pages // batch * (plan.page_bytes // plan.kv_bytes_per_token)


def weight_bytes_per_chip(model: ModelSpec, precision: Precision, ways: int = 1) -> int:
    """Returns the weights that one chip holds, as stored; `specs.sizes.weight_bytes` where there is one chip.

    Matrices and the vocabulary are divided; norms, biases and learned positions are on every chip.
    """
    stored, rest = dtype_bytes(precision.weights), dtype_bytes(rest_dtype(precision))
    parameters = parameter_counts(model)
    matrices = others = 0
    for matrix in layer_matrices(model, ways):
        elements = model.layers * matrix.rows * matrix.columns * max(1, matrix.experts)
        if matrix.quantised:
            matrices += elements
        else:
            others += elements
    tables = math.ceil((parameters.embedding + parameters.head) / ways)
    vectors = model.layers * parameters.vectors_per_layer + parameters.final_norm + parameters.positions
    return math.ceil(matrices * stored) + math.ceil((others + tables + vectors) * rest)


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
        mesh = ClusterSpec(chip=cluster.chip, mesh={"tensor": ways})
        smaller = dataclasses.replace(precision, weights=weights)
        plan = memory_plan(model, mesh, smaller, **config)
        return plan.kv_bytes >= _WORTHWHILE_KV_SHARE * plan.planned_bytes

    ways, advice = cluster.tensor, []
    while ways < _MOST_WAYS:
        ways *= 2
        if fits(ways, precision.weights):
            advice.append(f"{ways} chips (Cluster.mesh = {{'tensor': {ways}}})")
            break
    narrower = (d for d in _SMALLER_WEIGHTS if dtype_bytes(d) < dtype_bytes(precision.weights))
    if smaller := next((d for d in narrower if fits(cluster.tensor, d)), None):
        advice.append(f"{smaller} weights (Precision.weights = '{smaller}')")
    return (
        f"It fits with {' or '.join(advice)}." if advice else f"It does not fit on {_MOST_WAYS} of these chips either."
    )
