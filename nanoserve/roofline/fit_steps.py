"""What whole steps tell that no single operation does: element-wise kernels, and what the chip waits for the host.

A measured step, less its host gap and less its products and its attention at the constants fitted to those, is what
element-wise kernels took. `timing` prices them as an overhead for each launch and a share of the bandwidth, both linear
once the share is turned over: two numbers, by least squares in closed form. The host gaps are measured by themselves
and give three more: for a call, which a loop of steps has once, for each of its steps, and for each row sampled in it.
Weights make every error relative to its step or call.

Every third step of a model and kind is held out, in the order of what it reads: the second, the fifth, and so on. What
`StepFit` says of those is the error of the whole cost model on steps that it has not seen.

Invariants: no constant is negative or better than the datasheet, so what an optimistic constant of an operation leaves
over, below zero, stays an error and is seen as one. Next: `fit_file`, which writes the constants down.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nanoserve.roofline.efficiency import Calibration, Errors, Kernel
from nanoserve.roofline.fit import TooFewRowsError, errors, not_negative, rounded
from nanoserve.roofline.measured import MeasuredStep
from nanoserve.roofline.op import Op
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import op_times, step_time
from nanoserve.specs.chips import ChipSpec, ClusterSpec, Precision

CalibrationOf = Callable[[Precision], Calibration]
"""The constants that operations have so far, for a precision."""

HOST_CONSTANTS = ("call_s", "gap_s", "row_s")
_EVERY, _HELD_OUT = 3, 1
_FEWEST_ROWS = 2  # to fit to: of two constants


class StepLine(NamedTuple):
    """One step as a table shows it: its case, seconds measured and predicted, and whether no constant has seen it."""

    name: str
    measured_s: float
    predicted_s: float
    held_out: bool

    @property
    def error(self) -> float:
        """Of the prediction, relative and signed."""
        return self.predicted_s / self.measured_s - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFit:
    """Constants of what steps have besides products and attention, and how well steps are predicted with all of them.

    Attributes:
      steps: what was measured. held_out: those that no constant here has seen.
      elementwise, host: constants by the names of a file of constants.
      predicted: seconds of a step, of all of them. train, test: errors of those.
    """

    steps: tuple[MeasuredStep, ...]
    held_out: np.ndarray
    elementwise: Mapping[str, float]
    host: Mapping[str, float]
    predicted: np.ndarray
    train: Errors
    test: Errors

    @property
    def lines(self) -> list[StepLine]:
        """All of them, one by one."""
        rows = zip(self.steps, self.predicted.tolist(), self.held_out.tolist(), strict=True)
        return [StepLine(step.name, step.step_s, predicted_s, out) for step, predicted_s, out in rows]

    @property
    def held_out_names(self) -> list[str]:
        """Which steps are held out."""
        return [line.name for line in self.lines if line.held_out]


def fit_steps(steps: Sequence[MeasuredStep], chip: ChipSpec, calibration_of: CalibrationOf) -> StepFit:
    """Fits what is left of steps after their operations.

    Args:
      steps: measured on the chip. calibration_of: with constants of products and attention.

    Raises:
      TooFewRowsError: too few steps to fit to, or none to hold out.
    """
    held_out = held_out_steps(steps)
    if (~held_out).sum() < _FEWEST_ROWS or not held_out.any():
        raise TooFewRowsError(f"{len(steps)} whole steps are too few to fit to and to hold some out")
    cluster, seen = ClusterSpec(chip=chip, mesh={"tensor": 1}), list(itertools.compress(steps, ~held_out))
    elementwise = _elementwise(seen, cluster, calibration_of)
    host = _host(seen)
    predicted = np.array([_predicted(step, cluster, calibration_of, elementwise, host) for step in steps])
    ratio = predicted / np.array([step.step_s for step in steps])
    return StepFit(
        steps=tuple(steps),
        held_out=held_out,
        elementwise=elementwise,
        host=host,
        predicted=predicted,
        train=errors(ratio[~held_out]),
        test=errors(ratio[held_out]),
    )


def held_out_steps(steps: Sequence[MeasuredStep]) -> np.ndarray:
    """Returns which steps are held out: of each model, precision and kind, every third by what it reads."""
    held_out, groups = np.zeros(len(steps), dtype=bool), {}
    for row, step in enumerate(steps):
        groups.setdefault((step.model.name, step.precision, step.kind), []).append(row)
    for rows in groups.values():
        ordered = sorted(rows, key=lambda row: _reads(steps[row]))
        held_out[[row for place, row in enumerate(ordered) if place % _EVERY == _HELD_OUT]] = True
    return held_out


def _reads(step: MeasuredStep) -> tuple[int, int]:
    """What steps of a kind are ordered by: KV positions, then rows."""
    counts = step.counts
    return counts.decode_kv_tokens + counts.prefill_kv_tokens, counts.decode_seqs


class _Left(NamedTuple):
    """Of one step: seconds left for element-wise kernels, their launches, and seconds of their bytes at full rate."""

    seconds: float
    launches: float
    moving_s: float


def _left(step: MeasuredStep, cluster: ClusterSpec, calibration: Calibration) -> _Left:
    elementwise, others = _divided(step_ops(step.model, cluster, step.precision, step.counts))
    bytes_per_s = cluster.chip.hbm_bytes_per_s
    others_s = sum(op_times(op, cluster, calibration).total for op in others)
    always_s = sum(op.weight_bytes + op.activation_bytes for op in elementwise) / bytes_per_s
    return _Left(
        seconds=step.step_s - step.host_gap_s - others_s - always_s,
        launches=sum(op.launches for op in elementwise),
        moving_s=sum(op.unfused_bytes for op in elementwise) / bytes_per_s,
    )


def _divided(ops: Sequence[Op]) -> tuple[list[Op], list[Op]]:
    """Element-wise operations, and the others that the chip does."""
    return [op for op in ops if op.kind == "elementwise"], [op for op in ops if op.kind not in ("elementwise", "host")]


def _elementwise(
    steps: Sequence[MeasuredStep], cluster: ClusterSpec, calibration_of: CalibrationOf
) -> dict[str, float]:
    """An overhead, and a share of the bandwidth: fitted as the time beyond the datasheet's, so it is at most 1."""
    left = [_left(step, cluster, calibration_of(step.precision)) for step in steps]
    weights = 1 / np.array([step.step_s for step in steps])
    factors = np.array([[each.launches, each.moving_s] for each in left])
    wanted = np.array([each.seconds - each.moving_s for each in left])
    overhead_s, longer = not_negative(factors * weights[:, None], wanted * weights)
    return {"overhead_s": rounded(overhead_s), "memory_share": rounded(1 / (1 + longer))}


def _host(steps: Sequence[MeasuredStep]) -> dict[str, float]:
    """Something for every call, for every step in it, and for every row that is sampled."""
    calls = [call for step in steps for call in step.calls]
    weights = 1 / np.array([call.call_s for call in calls])
    factors = np.array([[1.0, call.steps, call.sampled] for call in calls])
    found = not_negative(factors * weights[:, None], np.array([call.gap_s for call in calls]) * weights)
    return dict(zip(HOST_CONSTANTS, map(rounded, found), strict=True))


def _predicted(
    step: MeasuredStep,
    cluster: ClusterSpec,
    calibration_of: CalibrationOf,
    elementwise: Mapping[str, float],
    host: Mapping[str, float],
) -> float:
    calibration = dataclasses.replace(
        calibration_of(step.precision),
        elementwise=Kernel(elementwise["overhead_s"], elementwise["memory_share"]),
        host_gap_s=host["gap_s"],
        host_row_s=host["row_s"],
    )
    ops = step_ops(step.model, cluster, step.precision, step.counts)
    return float(step_time(ops, cluster, calibration)) + host["call_s"] / step.calls[0].steps
