"""The cost columns of a run, all plans in one vectorised call.

Invariant: `compute_s + weights_s + kv_s + activations_s + link_s + overhead_s = duration_s` in every row. In a priced
run the overhead is what launches and the host cost. In a measured one it is whatever the model does not explain,
negative where the model is too slow.

Next: `nanoserve.engine.records`, which says what every column is; `nanoserve.report`, which reads them.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from nanoserve.roofline.calibration import Calibration, constants_for
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.matrices import attention_flops, matmul_flops
from nanoserve.roofline.op import Op, totals
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.split import split_of
from nanoserve.roofline.timing import bound_times
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

BOUNDS = ("compute", "weights", "kv", "activations", "link", "host")
_EXPLAINED = BOUNDS[:-1]
_COUNT_FIELDS = tuple(field.name for field in dataclasses.fields(StepCounts))


def cost_columns(
    steps: Mapping[str, np.ndarray],
    model: ModelSpec,
    cluster: ClusterSpec,
    precision: Precision,
    calibration: Calibration,
) -> dict[str, np.ndarray]:
    """Returns `engine.records.COST_COLUMNS` for every plan of a run.

    Args:
      steps: `engine.records.STEP_COLUMNS`, equally long arrays.
      model, cluster, precision: what ran.
      calibration: the run's own mode; it divides the duration into bounds. `sol_s` is always at datasheet limits.

    Raises:
      ConfigError: unknown dtype or mesh axis.
    """
    counts = StepCounts(**{name: steps[name] for name in _COUNT_FIELDS})
    ops = step_ops(model, cluster, precision, counts)
    sol = bound_times(ops, cluster, constants_for(cluster.chip, precision, "sol"))
    own = bound_times(ops, cluster, calibration)
    duration_s = steps["duration_s"]
    chips = split_of(cluster).replica_chips
    work = _work(model, chips, ops, counts)
    flops = work["matmul_flops"] + work["attention_flops"]
    moved = work["weight_bytes"] + work["kv_read_bytes"] + work["kv_write_bytes"]
    waits = np.stack([_column(getattr(sol, name), duration_s) for name in _EXPLAINED] + [steps["host_gap_s"]])
    shares = {f"{name}_s": _column(getattr(own, name), duration_s) for name in _EXPLAINED}
    return work | {
        "mfu": _ratio(flops, chips * cluster.chip.peak(precision.compute) * duration_s),
        "mbu": _ratio(moved, chips * cluster.chip.hbm_bytes_per_s * duration_s),
        "sol_s": _column(sol.total, duration_s),
        "roofline_fraction": _ratio(_column(sol.total, duration_s), duration_s),
        "bound": np.array(BOUNDS)[waits.argmax(axis=0)],
        **shares,
        "overhead_s": duration_s - sum(shares.values()),
    }


def _work(model: ModelSpec, chips: int, ops: tuple[Op, ...], counts: StepCounts) -> dict[str, np.ndarray]:
    """FLOPs of useful tokens, counted once; bytes of all chips of the replica, each taken for the busiest.

    Floats: sums of a run pass 2**63.
    """
    pairs = counts.decode_kv_tokens + counts.drafted_pairs + counts.prefill_pairs
    window_pairs = counts.decode_window_tokens + counts.drafted_window_pairs + counts.prefill_window_pairs
    like = np.asarray(counts.steps)
    columns = {
        "matmul_flops": _column(matmul_flops(model, counts.new_tokens, counts.sampled), like),
        "attention_flops": _column(attention_flops(model, pairs, window_pairs), like),
    }
    one_chip = totals(ops)
    for name in ("weight_bytes", "kv_read_bytes", "kv_write_bytes", "activation_bytes", "link_bytes"):
        columns[name] = chips * _column(getattr(one_chip, name), like)
    return columns


def _column(values: np.ndarray | float, like: np.ndarray) -> np.ndarray:
    """As a float column; a quantity that does not exist here (links of one chip) is a column of zeros."""
    return np.broadcast_to(np.asarray(values, dtype=np.float64), like.shape)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where there is no whole (a measured step too short for its clock)."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
