"""Single operations that were measured: rows of somebody's table as `Op`s, with the seconds each took.

A group is what one set of constants is fitted to: a kind of operation and a variant (operand dtype, KV dtype, ways).
Invariant: an `Op` here counts what `ops.step_ops` would count for one launch of it (but for writing KV, which is
another kernel), so a constant fitted to it means the same in a step.

Next: `measured_tables` and `measured_bench`, which read them; `fit` and `table`, which use them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nanoserve.roofline.op import Op, OpKind
from nanoserve.specs.chips import BYTES_PER_ELEMENT

ACTIVATION_BYTES = 2  # everything was measured with 16-bit activations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """The measured rows of one kind and variant; arrays have one entry a row.

    Attributes:
      kind, variant: as in a file of constants: `matmul` `fp8`, `all_reduce` `8`.
      op: one launch of each row. seconds: what it took.
      shape: the columns that the split into train and held-out goes by. keys: all columns that tell rows apart.
      size: what errors are laid out by. size_name: what that is, with its unit.
      rows: which rows of which table these are, for people.
    """

    kind: str
    variant: str
    op: Op
    seconds: np.ndarray
    shape: Mapping[str, np.ndarray]
    keys: Mapping[str, np.ndarray]
    size: np.ndarray
    size_name: str
    rows: str

    def __len__(self) -> int:
        return len(self.seconds)


def select(group: Measured, keep: np.ndarray) -> Measured:
    """Returns the rows of a group that are kept."""

    def rows(value: Any) -> Any:
        return value[keep] if isinstance(value, np.ndarray) else value

    op = dataclasses.replace(
        group.op, **{f.name: rows(getattr(group.op, f.name)) for f in dataclasses.fields(group.op)}
    )
    return dataclasses.replace(
        group,
        op=op,
        seconds=group.seconds[keep],
        shape={name: column[keep] for name, column in group.shape.items()},
        keys={name: column[keep] for name, column in group.keys.items()},
        size=group.size[keep],
    )


class Heads(NamedTuple):
    """Heads of a chip, one entry a row: queries, keys and values, and elements of each."""

    queries: np.ndarray
    kv: np.ndarray
    size: np.ndarray


def attention_op(
    kind: OpKind, kv: str, heads: Heads, rows: np.ndarray, tokens: np.ndarray, pairs: np.ndarray, read: np.ndarray
) -> Op:
    """Returns one launch of attention.

    Args:
      kind: `attention_decode` or `attention_prefill`. kv: dtype of the KV. heads: of the chip.
      rows: sequences. tokens: new ones of all sequences. pairs: query-key pairs. read: KV positions.
    """
    return Op(
        name=kind,
        kind=kind,
        flops=4 * pairs * heads.queries * heads.size,
        kv_read_bytes=2 * read * heads.kv * heads.size * BYTES_PER_ELEMENT[kv],
        activation_bytes=2 * tokens * heads.queries * heads.size * ACTIVATION_BYTES,
        work_items=rows * heads.kv,
        launches=1,
    )
