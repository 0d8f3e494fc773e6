"""The few constants that come from whole results rather than from single operations, fitted on their training rows.

What a step costs beyond its operations (the host, and what launches cost inside a server) adds to every step, so a time
per output token is linear in it: `fit_host` brings the sum of the sizes of relative errors to its least, which a few
rows that wait for something else do not bend. `fit_overlap` searches one number.
Invariant: only rows that `comparison.training_of` names, or the first requests of a log, are looked at.
Next: `experiments/fit_training.py`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nanoserve.analysis.published.comparison import TRAINING_LOGS
from nanoserve.analysis.published.rows import Case
from nanoserve.analysis.published.scenario import replay
from nanoserve.analysis.published.validation import ErrorSummary, summarise
from nanoserve.analysis.published.vllm_log import MeasuredLog
from nanoserve.roofline.calibration import Calibration, constants_for
from nanoserve.roofline.fit import not_negative
from nanoserve.roofline.ops import layer_matrices
from nanoserve.specs.chips import ChipSpec, Precision

_OVERLAPS = np.linspace(0.0, 1.0, 21)
_REWEIGHTINGS, _SMALLEST_ERROR = 50, 0.005


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostFit:
    """What a step costs beside its operations, and how far training rows were off without it and with it.

    Attributes:
      gap_s: of each step. row_s: of each row that it samples. launch_s: of each fp8 product, 0 unless it was asked for.
    """

    gap_s: float
    row_s: float
    launch_s: float
    without: ErrorSummary
    fitted: ErrorSummary


def fit_host(cases: Sequence[Case], *, launches: bool = False) -> HostFit:
    """Fits the host's time of a step, on closed loops.

    Args:
      cases: the training rows, of one stack. launches: fit also the overhead of fp8 products, which the stack's file
        then gets instead of the one it has.
    """
    without = [_predicted_tpot_s(case, 0.0, 0.0, 0.0 if launches else None) for case in cases]
    measured = np.array([case.row.tpot_s for case in cases])
    per_unit = np.array(
        [(1.0, case.row.concurrency, _fp8_launches(case) if launches else 0.0) for case in cases], dtype=float
    )
    found = _least_deviations((per_unit.T / measured).T, 1 - np.array(without) / measured)
    fitted = [_predicted_tpot_s(case, found[0], found[1], found[2] if launches else None) for case in cases]
    return HostFit(
        gap_s=found[0],
        row_s=found[1],
        launch_s=found[2],
        without=summarise(np.array(without) / measured - 1),
        fitted=summarise(np.array(fitted) / measured - 1),
    )


def fit_overlap(log: MeasuredLog) -> float:
    """Returns the overlap of moving and computing in bf16 products that brings the training requests' mean TPOT."""
    _, trained = TRAINING_LOGS[log.name]
    calibration = _constants(log.scenario.cluster.chip, log.scenario.precision, log.stack)
    measured_s = log.measured.tpot_s[:trained].mean()

    def off(overlap: float) -> float:
        kernel = dataclasses.replace(calibration.matmul["bf16"], overlap=overlap)
        changed = dataclasses.replace(calibration, matmul={**calibration.matmul, "bf16": kernel})
        return abs(replay(log.scenario, changed).tpot_s[:trained].mean() - measured_s)

    return float(min(_OVERLAPS, key=off))


def _predicted_tpot_s(case: Case, gap_s: float, row_s: float, launch_s: float | None) -> float:
    scenario = case.scenario
    calibration = _constants(scenario.cluster.chip, scenario.precision, case.stack)
    matmul = dict(calibration.matmul)
    if launch_s is not None:
        matmul["fp8"] = dataclasses.replace(matmul["fp8"], overhead_s=launch_s)
    changed = dataclasses.replace(calibration, host_gap_s=gap_s, host_row_s=row_s, matmul=matmul)
    return float(np.nanmean(replay(scenario, changed).tpot_s))


def _constants(chip: ChipSpec, precision: Precision, stack: str) -> Calibration:
    return constants_for(chip, precision, "calibrated", stack)


def _fp8_launches(case: Case) -> float:
    """fp8 products of a step."""
    scenario = case.scenario
    quantised = scenario.precision.compute == "fp8"
    return float(quantised * scenario.model.layers * len(layer_matrices(scenario.model)))


def _least_deviations(factors: np.ndarray, wanted: np.ndarray) -> list[float]:
    """Least sum of absolute errors with no term below zero, by least squares with weights that follow the errors."""
    found = not_negative(factors, wanted)
    for _ in range(_REWEIGHTINGS):
        weights = np.maximum(np.abs(factors @ np.array(found) - wanted), _SMALLEST_ERROR) ** -0.5
        found = not_negative(factors * weights[:, None], wanted * weights)
    return found
