"""Single operations that were measured: rows of somebody's table as `Op`s, with the seconds each took.

A group is what one set of constants is fitted to: a kind of operation and a variant (operand dtype, KV dtype, ways).
Invariant: an `Op` here counts what `ops.step_ops` would count for one launch of it (but for writing KV, which is
another kernel), so a constant fitted to it means the same in a step. Whole steps (`MeasuredStep`) are what is left to
compare with once their operations have constants.

Next: `measured_tables` and `measured_bench`, which read them; `fit`, `fit_steps` and `table`, which use them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.op import Op, OpKind
from nanoserve.specs.chips import BYTES_PER_ELEMENT, Precision
from nanoserve.specs.models import ModelSpec

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
      of_models: every row is an operation of some model, so that none is left out of a fit.
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
    of_models: bool = False

    def __len__(self) -> int:
        return len(self.seconds)


class HostGap(NamedTuple):
    """What the chip waited for the host in a call: its steps, the rows sampled in it, the gap, and all of its time."""

    steps: int
    sampled: int
    gap_s: float
    call_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """One whole step that was measured, of a model on one chip.

    Attributes:
      name: of the case. model, precision: what ran, and in which dtypes. counts: of one step.
      calls: the calls of such steps that were timed, the first of them in `loop_steps` steps.
      step_s: seconds of one step in that first call, the host's part of them included.
    """

    name: str
    model: ModelSpec
    precision: Precision
    counts: StepCounts
    calls: tuple[HostGap, ...]
    step_s: float

    @property
    def kind(self) -> str:
        """`decode` or `prefill`."""
        return "decode" if self.counts.decode_seqs else "prefill"

    @property
    def host_gap_s(self) -> float:
        """Seconds of a step in which the chip waits for the host."""
        return self.calls[0].gap_s / self.calls[0].steps


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
