"""Seconds from operations: what each waits for, and for how long.

An operation takes `overhead x launches + max(bytes / (share x bandwidth), FLOPs / (share x peak))`; a step is the sum
over its operations, because each needs the one before. The time between overhead is booked to one bound, compute, or to
the bytes by kind; so bounds sum to the step time by construction. The alternative, the largest of the summed times,
would let one layer's attention run under another's matrix product; it is lower, and no engine we know reaches it.

Decode attention is `write + max(read, compute)` instead: reading and computing are both proportional to the KV
positions attended, so its time is exactly linear in them. `pricing` rests on that.

The same code takes numbers and arrays. Next: `pricing`, `records`.
"""

import dataclasses
from collections.abc import Iterable

from nanoserve.roofline.calibration import Calibration, Kernel
from nanoserve.roofline.numeric import Number, interpolate_log2, where
from nanoserve.roofline.ops import Op, dtype_bytes
from nanoserve.specs.chips import ChipSpec, ClusterSpec, Precision


@dataclasses.dataclass(frozen=True, slots=True)
class BoundTimes:
    """Seconds by what was waited for; `total` is the time of the plan."""

    compute: Number = 0.0
    weights: Number = 0.0
    kv: Number = 0.0
    activations: Number = 0.0
    link: Number = 0.0
    overhead: Number = 0.0

    @property
    def total(self) -> Number:
        """All of it."""
        return self.compute + self.weights + self.kv + self.activations + self.link + self.overhead

    def __add__(self, other: "BoundTimes") -> "BoundTimes":
        return BoundTimes(
            self.compute + other.compute,
            self.weights + other.weights,
            self.kv + other.kv,
            self.activations + other.activations,
            self.link + other.link,
            self.overhead + other.overhead,
        )


def step_time(ops: Iterable[Op], cluster: ClusterSpec, calibration: Calibration) -> Number:
    """Returns the seconds that all steps of a plan take, host gap included."""
    return bound_times(ops, cluster, calibration).total


def bound_times(ops: Iterable[Op], cluster: ClusterSpec, calibration: Calibration) -> BoundTimes:
    """Returns the seconds of a plan by bound.

    Args:
      ops: from `ops.step_ops` for the same cluster.
    """
    return sum((op_times(op, cluster, calibration) for op in ops), BoundTimes())


def op_times(op: Op, cluster: ClusterSpec, calibration: Calibration) -> BoundTimes:
    """Returns the seconds of one operation class by bound."""
    chip = cluster.chip
    match op.kind:
        case "matmul":
            return _roof(op, chip, calibration.matmul_for(op.compute))
        case "attention_decode":
            return _decode_attention(op, chip, calibration.decode_attention)
        case "attention_prefill":
            share = interpolate_log2(op.reuse_tokens, calibration.prefill_curve)
            return _roof(op, chip, calibration.prefill_attention, share)
        case "collective":
            collective = calibration.collective_for(cluster.tensor)
            return BoundTimes(link=op.link_bytes / collective.bytes_per_s, overhead=op.launches * collective.overhead_s)
        case "elementwise":
            return _elementwise(op, chip, calibration.elementwise)
        case "host":
            return BoundTimes(overhead=op.launches * calibration.host_gap_s)


def critical_batch_tokens(chip: ChipSpec, precision: Precision) -> float:
    """Returns the tokens per step above which a matrix product waits for FLOPs rather than for its weights.

    Source: Austin et al., "How to Scale Your Model", chapter on inference: peak x bytes per weight / (2 x bandwidth).
    """
    return chip.peak(precision.compute) * dtype_bytes(precision.weights) / (2 * chip.hbm_bytes_per_s)


def _roof(op: Op, chip: ChipSpec, kernel: Kernel, compute_share: Number | None = None) -> BoundTimes:
    share = kernel.compute_share if compute_share is None else compute_share
    compute_s = op.flops / (share * chip.peak(op.compute))
    second_per_byte = 1 / (kernel.memory_share * chip.hbm_bytes_per_s)
    weights_s = op.weight_bytes * second_per_byte
    kv_s = (op.kv_read_bytes + op.kv_write_bytes) * second_per_byte
    activations_s = op.activation_bytes * second_per_byte
    computing = compute_s > weights_s + kv_s + activations_s
    return BoundTimes(
        compute=where(computing, compute_s, 0.0),
        weights=where(computing, 0.0, weights_s),
        kv=where(computing, 0.0, kv_s),
        activations=where(computing, 0.0, activations_s),
        overhead=op.launches * kernel.overhead_s,
    )


def _decode_attention(op: Op, chip: ChipSpec, kernel: Kernel) -> BoundTimes:
    compute_s = op.flops / (kernel.compute_share * chip.peak(op.compute))
    second_per_byte = 1 / (kernel.memory_share * chip.hbm_bytes_per_s)
    read_s = op.kv_read_bytes * second_per_byte
    computing = compute_s > read_s
    return BoundTimes(
        compute=where(computing, compute_s, 0.0),
        kv=where(computing, 0.0, read_s) + op.kv_write_bytes * second_per_byte,
        activations=op.activation_bytes * second_per_byte,
        overhead=op.launches * kernel.overhead_s,
    )


def _elementwise(op: Op, chip: ChipSpec, kernel: Kernel) -> BoundTimes:
    """What must move does so at full bandwidth; the rest, at the kernels' share of it."""
    return BoundTimes(
        weights=op.weight_bytes / chip.hbm_bytes_per_s,
        activations=op.activation_bytes / chip.hbm_bytes_per_s
        + op.unfused_bytes / (kernel.memory_share * chip.hbm_bytes_per_s),
        overhead=op.launches * kernel.overhead_s,
    )
