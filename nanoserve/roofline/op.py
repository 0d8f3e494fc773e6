"""One operation class of a plan: what it computes, moves and sends. `ops` makes them, `timing` prices them.

Invariant: totals over all layers and all steps of the plan, of one chip, the busiest; integers, arrays with one entry a
plan, or JAX values.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

from nanoserve.roofline.counts import Count

OpKind = Literal[
    "matmul", "grouped_matmul", "attention_decode", "attention_prefill", "collective", "elementwise", "host"
]
_PRODUCTS = ("matmul", "grouped_matmul")
_ATTENTION = ("attention_decode", "attention_prefill")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation class of a plan: totals over layers and steps, of one chip.

    Attributes:
      name: `qkv`, `o`, `gate_up`, `down`, `head`, ... kind: which rule of `timing` prices it.
      compute: operand dtype, which picks the peak. stored: of a product, the dtype that its matrix is stored in.
      flops: 2 per multiply-add.
      weight_bytes, kv_read_bytes, kv_write_bytes, activation_bytes: HBM traffic that any program has.
      unfused_bytes: further HBM traffic if element-wise operations are kernels of their own.
      link_bytes: bytes the chip sends, as a ring counts them (`links.sent_bytes`).
      launches: kernels.
      rows, columns: k and n of a product's matrix, as one launch has it; 0 where there is none.
      work_items: of attention, sequences x KV heads of the chip, which a decode kernel takes one by one; of the host,
        sampled rows.
      heads: of attention, the chip's query heads, its KV heads and their size: what a measured table is looked up by;
        None where no table can be asked (windows, latents).
      ways, link_share: of a collective, its chips, and what its pattern and topology leave of the best all-reduce.
      idle: of a pipeline, how long its stage waits besides while others are filled and emptied, as a share of the
        operation's own time; None where there is no pipeline, or every stage does its part of the operation at once.
    """

    name: str
    kind: OpKind
    compute: str = "bf16"
    stored: str = "bf16"
    flops: Count = 0
    weight_bytes: Count = 0
    kv_read_bytes: Count = 0
    kv_write_bytes: Count = 0
    activation_bytes: Count = 0
    unfused_bytes: Count = 0
    link_bytes: Count = 0
    launches: Count = 0
    rows: int = 0
    columns: int = 0
    work_items: Count = 0
    heads: tuple[int, int, int] | None = None
    ways: int = 1
    link_share: float = 1.0
    idle: Count | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Totals:
    """Sums over operations: FLOPs of matrix products and of attention, and bytes by kind."""

    matmul_flops: Count
    attention_flops: Count
    weight_bytes: Count
    kv_read_bytes: Count
    kv_write_bytes: Count
    activation_bytes: Count
    link_bytes: Count


def totals(ops: Iterable[Op]) -> Totals:
    """Returns the sums over operations; of one chip, as the operations are. `unfused_bytes` are not in them."""
    ops = tuple(ops)
    return Totals(
        matmul_flops=sum(op.flops for op in ops if op.kind in _PRODUCTS),
        attention_flops=sum(op.flops for op in ops if op.kind in _ATTENTION),
        weight_bytes=sum(op.weight_bytes for op in ops),
        kv_read_bytes=sum(op.kv_read_bytes for op in ops),
        kv_write_bytes=sum(op.kv_write_bytes for op in ops),
        activation_bytes=sum(op.activation_bytes for op in ops),
        link_bytes=sum(op.link_bytes for op in ops),
    )
