"""Seconds from operations: what each waits for, and for how long.

An operation takes `overhead x launches`, and the longer of `bytes / (share x bandwidth)` and `FLOPs / (share x peak)`,
and what its kernel does not hide of the shorter. A step is the sum over its operations, because each needs the one
before. What is not overhead is booked to compute and to the bytes by kind; so bounds sum to the step time by
construction. The alternative, the largest of the summed times, would let one layer's attention run under another's
matrix product; it is lower, and no engine we know reaches it.

Decode attention is `write + max(read, compute)` instead: reading and computing are both proportional to the KV
positions attended, so its time is exactly linear in them. `pricing` rests on that.

The same code takes numbers and arrays. Next: `pricing`, `records`.
"""

import dataclasses
from collections.abc import Iterable

from nanoserve.roofline.efficiency import Calibration, Kernel
from nanoserve.roofline.numeric import Number, maximum, where
from nanoserve.roofline.op import Op
from nanoserve.roofline.storage import dtype_bytes
from nanoserve.specs.chips import ChipSpec, ClusterSpec, Precision

QUANTISE_BYTES = 3  # an element read in 16 bits and written in 8


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
    """Returns the seconds of one operation class by bound; what a stage of a pipeline waits is overhead.

    Where a table was measured, its seconds, divided among the bounds as the constants would.
    """
    times = _by_constants(op, cluster, calibration)
    seconds = calibration.table.seconds(op) if calibration.table is not None else None
    times = times if seconds is None else _scaled(times, seconds)
    if op.idle is None or calibration.mode == "sol":
        return times
    return times + BoundTimes(overhead=op.idle * times.total)


def _by_constants(op: Op, cluster: ClusterSpec, calibration: Calibration) -> BoundTimes:
    chip = cluster.chip
    match op.kind:
        case "matmul":
            return kernel_times(op, chip, calibration.matmul_for(op.compute, op.stored))
        case "grouped_matmul":
            return kernel_times(op, chip, calibration.grouped_matmul_for(op.compute))
        case "attention_decode":
            return kernel_times(op, chip, calibration.decode_attention)
        case "attention_prefill":
            return kernel_times(op, chip, calibration.prefill_attention)
        case "collective":
            known = calibration.collective_for(op.ways)
            link_s, overhead_s = known.times(op.link_bytes / op.link_share, op.launches)
            return BoundTimes(link=link_s, overhead=overhead_s)
        case "elementwise":
            return _elementwise(op, chip, calibration.elementwise)
        case "host":
            return BoundTimes(overhead=op.launches * calibration.host_gap_s + op.work_items * calibration.host_row_s)


def _scaled(times: BoundTimes, seconds: Number) -> BoundTimes:
    """The same division of another total."""
    total = times.total
    factor = seconds / (total + (total == 0))
    return BoundTimes(*(factor * getattr(times, field.name) for field in dataclasses.fields(BoundTimes)))


def kernel_times(op: Op, chip: ChipSpec, kernel: Kernel) -> BoundTimes:
    """Returns the seconds by bound of a product or of attention, with given constants: what a fit differentiates."""
    return (_decode_attention if op.kind == "attention_decode" else _roof)(op, chip, kernel)


def critical_batch_tokens(chip: ChipSpec, precision: Precision) -> float:
    """Returns the tokens per step above which a matrix product waits for FLOPs rather than for its weights.

    Source: Austin et al., "How to Scale Your Model", chapter on inference: peak x bytes per weight / (2 x bandwidth).
    """
    return chip.peak(precision.compute) * dtype_bytes(precision.weights) / (2 * chip.hbm_bytes_per_s)


def _roof(op: Op, chip: ChipSpec, kernel: Kernel) -> BoundTimes:
    """Moves and computes, the shorter of the two hidden as far as the kernel overlaps them."""
    compute_s = _tiled_flops(op, kernel) / (kernel.compute_share * chip.peak(op.compute))
    second_per_byte = 1 / (kernel.memory_share * chip.hbm_bytes_per_s)
    weights_s = op.weight_bytes * second_per_byte
    kv_s = (op.kv_read_bytes + op.kv_write_bytes) * second_per_byte
    activations_s = op.activation_bytes * second_per_byte
    computing = compute_s > weights_s + kv_s + activations_s
    shown = 1 - kernel.overlap
    moving = where(computing, shown, 1.0)
    return BoundTimes(
        compute=where(computing, 1.0, shown) * compute_s,
        weights=moving * weights_s,
        kv=moving * kv_s,
        activations=moving * activations_s + _quantising_s(op, chip, kernel),
        overhead=op.launches * kernel.overhead_s,
    )


def _tiled_flops(op: Op, kernel: Kernel) -> Number:
    """What a product computes when the last tile of tokens is padded; few tokens have tiles of a half or a quarter."""
    if kernel.tile_tokens == 1:
        return op.flops
    quarter = 2 * op.rows * op.columns * op.launches * kernel.tile_tokens // 4
    tile = where(op.flops <= quarter, quarter, where(op.flops <= 2 * quarter, 2 * quarter, 4 * quarter))
    empty = tile == 0
    return -(-op.flops // (tile + empty)) * tile


def _quantising_s(op: Op, chip: ChipSpec, kernel: Kernel) -> Number:
    """Reads a product's inputs as they are and writes them as its operands, in a kernel of its own before it."""
    elements = op.flops / (2 * maximum(op.columns, 1)) * (op.columns > 0)
    return QUANTISE_BYTES * elements / (kernel.quantise_share * chip.hbm_bytes_per_s)


def _decode_attention(op: Op, chip: ChipSpec, kernel: Kernel) -> BoundTimes:
    compute_s = op.flops / (kernel.compute_share * chip.peak(op.compute))
    second_per_byte = 1 / (kernel.memory_share * chip.hbm_bytes_per_s)
    read_s = op.kv_read_bytes * second_per_byte
    computing = compute_s > read_s
    return BoundTimes(
        compute=where(computing, compute_s, 0.0),
        kv=where(computing, 0.0, read_s) + op.kv_write_bytes * second_per_byte,
        activations=op.activation_bytes * second_per_byte,
        overhead=op.launches * kernel.overhead_s + op.work_items * kernel.item_s,
    )


def _elementwise(op: Op, chip: ChipSpec, kernel: Kernel) -> BoundTimes:
    """What must move does so at full bandwidth; the rest, at the kernels' share of it."""
    return BoundTimes(
        weights=op.weight_bytes / chip.hbm_bytes_per_s,
        activations=op.activation_bytes / chip.hbm_bytes_per_s
        + op.unfused_bytes / (kernel.memory_share * chip.hbm_bytes_per_s),
        overhead=op.launches * kernel.overhead_s,
    )
