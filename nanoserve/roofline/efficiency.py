"""How far from the datasheet kernels stay: the constants of the cost model as plain values.

A `Kernel` turns work into seconds by shares of the chip's own figures, so that constants measured on one chip can be
carried to another. Invariant: a share is at most 1 where the chip really moves or computes what is counted, so that no
time is below the datasheet's. Next: `calibration`, which finds a chip's constants; `timing`, which applies them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, Protocol

from nanoserve.roofline.numeric import Number, where
from nanoserve.roofline.op import Op

Mode = Literal["sol", "calibrated", "table"]
MODES = ("sol", "calibrated", "table")


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """A kind of kernel: what it takes beside its work, and the shares of bandwidth and peak that it reaches.

    Attributes:
      overhead_s: of each launch.
      memory_share: of the datasheet's bandwidth; infinite where the bytes are not moved at all (element-wise kernels of
        a fused program).
      compute_share: of the dense peak.
      overlap: how much of the shorter of moving and computing hides behind the longer; 1 is all of it.
      item_s: for each work item of decode attention, a sequence's KV head: what a tile costs before it reads.
      tile_tokens: a product computes its tokens in multiples of so many, few tokens in multiples of a half or a quarter
        of it; 1 where the waste is in `compute_share`.
      quantise_share: of the bandwidth, reached by the kernel that makes a matrix product's inputs 8-bit before it;
        infinite where there is no such kernel.
    """

    overhead_s: float
    memory_share: float
    compute_share: float = 1.0
    overlap: float = 1.0
    item_s: float = 0.0
    tile_tokens: int = 1
    quantise_share: float = math.inf


def product_variant(compute: str, stored: str) -> str:
    """What the constants of a product go by: its operands' dtype, and the matrix's own where it is stored in another.

    Args:
      compute: operand dtype. stored: of the matrix; `int4` that is multiplied in bf16 has the variant `bf16_int4`.
    """
    return compute if stored == compute else f"{compute}_{stored}"


@dataclasses.dataclass(frozen=True, slots=True)
class Collective:
    """All-reduce and its relatives: overhead, and bus bandwidth (ring bytes over time) of one chip.

    Attributes:
      overhead_s, bytes_per_s: of the algorithm for short messages (one step of all to all, low latency).
      bulk: the one for long messages, where there is another; each message takes the faster of the two.
      longest_bytes: ring bytes of the longest message that either takes. beyond: what longer ones are left to.
    """

    overhead_s: float
    bytes_per_s: float
    bulk: "Collective | None" = None
    longest_bytes: float = math.inf
    beyond: "Collective | None" = None

    def times(self, link_bytes: Number, launches: Number) -> tuple[Number, Number]:
        """Returns seconds on the links and seconds of overhead, of `launches` equal messages of `link_bytes` in all."""
        times = link_bytes / self.bytes_per_s, launches * self.overhead_s
        if self.bulk is not None:
            bulk = self.bulk.times(link_bytes, launches)
            times = _either(sum(bulk) < sum(times), bulk, times)
        if self.beyond is not None:
            times = _either(link_bytes > launches * self.longest_bytes, self.beyond.times(link_bytes, launches), times)
        return times


def _either(condition: Number, yes: tuple[Number, Number], no: tuple[Number, Number]) -> tuple[Number, Number]:
    return where(condition, yes[0], no[0]), where(condition, yes[1], no[1])


@dataclasses.dataclass(frozen=True, slots=True)
class Errors:
    """Absolute relative errors of a predicted quantity: their mean, median and 90th percentile."""

    mean_abs: float
    p50: float
    p90: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """What is known of a mode's error on whole steps: published results that were replayed, or why there are none.

    Attributes:
      reason: of a mode without results. rows: results that were predicted. sources: where they were published.
      errors: metric (`tpot`, `ttft`, `throughput`, `step`) -> its errors. command: makes them again.
      of: what the results are.
    """

    reason: str = ""
    rows: int = 0
    sources: tuple[str, ...] = ()
    errors: Mapping[str, Errors] = dataclasses.field(default_factory=dict)
    command: str = ""
    of: str = "published results"

    def __str__(self) -> str:
        """One line for a summary."""
        if not self.rows:
            return self.reason
        found = ", ".join(
            f"{metric} {error.mean_abs:.1%} (median {error.p50:.1%}, p90 {error.p90:.1%})"
            for metric, error in self.errors.items()
        )
        return f"mean absolute error on {self.rows} {self.of}: {found}"


class OpTable(Protocol):
    """Measured operations to look up."""

    def seconds(self, op: Op) -> Number | None:
        """Returns what an operation takes by what was measured; None where nothing like it was."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Every constant of the cost model for one chip and precision.

    Attributes:
      name: short label. chip, mode. stack: whose kernels were measured. file: the constants' file; empty for `sol`.
      matmul: by `product_variant`; `bf16` is always there and stands for dtypes that are not.
      grouped_matmul: products of routed experts, by operand dtype; empty where they are priced as `matmul`.
      decode_attention, prefill_attention: for the KV dtype of the precision.
      collectives: by ways. elementwise: norms, rotation, activation, embedding, sampling.
      host_gap_s, host_row_s: what the chip waits for the host, per step and per row sampled in it.
      host_call_s: the same per plan, where a plan is one call of a program that loops over its steps; 0 where a stack
        has a call for every step.
      runtime_bytes, collectives_bytes: memory that neither weights, activations nor KV may use, per chip; the second
        only with more than one chip.
      sources: field name -> where it was read. validation: what the mode's error on whole steps is known to be.
      table: in mode `table`, measured operations; the constants price what it does not have.
    """

    name: str
    chip: str
    mode: Mode
    stack: str
    file: str = ""
    matmul: Mapping[str, Kernel]
    grouped_matmul: Mapping[str, Kernel] = dataclasses.field(default_factory=dict)
    decode_attention: Kernel
    prefill_attention: Kernel
    collectives: Mapping[int, Collective]
    elementwise: Kernel
    host_gap_s: float
    host_row_s: float = 0.0
    host_call_s: float = 0.0
    runtime_bytes: int
    collectives_bytes: int
    sources: Mapping[str, str]
    validation: Validation
    table: OpTable | None = None

    def matmul_for(self, compute: str, stored: str) -> Kernel:
        """Constants of matrix products with operands in `compute` and a matrix stored in `stored`.

        Where nothing is known of reading a matrix in another dtype than it is multiplied in, those of the operands.
        """
        known = self.matmul.get(product_variant(compute, stored))
        return known or self.matmul.get(compute, self.matmul["bf16"])

    def grouped_matmul_for(self, compute: str) -> Kernel:
        """Constants of routed experts' products with operands in `compute`."""
        known = self.grouped_matmul
        return known.get(compute) or known.get("bf16") or self.matmul_for(compute, compute)

    def collective_for(self, ways: int) -> Collective:
        """Constants for `ways` chips: the next larger number that is known, else the largest."""
        known = [n for n in sorted(self.collectives) if n >= ways] or [max(self.collectives)]
        return self.collectives[known[0]]
