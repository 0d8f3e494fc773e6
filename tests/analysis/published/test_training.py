"""Fits find the constants that made their rows, and a few rows that waited for something else do not bend them."""

import dataclasses

import numpy as np
import pytest

from nanoserve.analysis.published.comparison import TRAINING_LOGS
from nanoserve.analysis.published.rows import Case, case_of
from nanoserve.analysis.published.scenario import replay
from nanoserve.analysis.published.training import fit_host, fit_overlap
from nanoserve.analysis.published.vllm_log import MeasuredLog
from nanoserve.roofline.calibration import constants_for
from tests.analysis.published import factories as make

GAP_S, ROW_S = 2e-3, 4e-5
OVERLAP = 0.4


def measured_with(gap_s: float, row_s: float, tensor: int, concurrency: int) -> Case:
    """A training row whose time per token is the simulator's own, with a host that takes so long."""
    row = make.row(
        engine="vllm 0.12.0",
        model="Qwen3-32B",
        precision="unstated",
        tensor=tensor,
        concurrency=concurrency,
        output_tokens=60,
    )
    case = case_of(row)
    assert isinstance(case, Case)
    scenario = case.scenario
    calibration = constants_for(scenario.cluster.chip, scenario.precision, "calibrated", case.stack)
    outcome = replay(scenario, dataclasses.replace(calibration, host_gap_s=gap_s, host_row_s=row_s))
    return dataclasses.replace(case, row=dataclasses.replace(row, tpot_s=float(np.nanmean(outcome.tpot_s))))


def test_a_host_that_made_the_rows_is_found_again():
    cases = [measured_with(GAP_S, ROW_S, tensor, users) for tensor in (4, 8) for users in (2, 8, 32)]
    fit = fit_host(cases)
    assert fit.gap_s == pytest.approx(GAP_S, rel=0.1)
    assert fit.row_s == pytest.approx(ROW_S, rel=0.2)
    assert fit.launch_s == 0
    assert fit.fitted.mean_abs < 0.01 < fit.without.mean_abs


def test_a_row_that_waited_for_something_else_does_not_bend_the_others():
    cases = [measured_with(GAP_S, ROW_S, 8, users) for users in (2, 4, 8, 16, 32)]
    slow = dataclasses.replace(
        cases[-2], row=dataclasses.replace(cases[-2].row, tpot_s=3 * (cases[-2].row.tpot_s or 0))
    )
    assert fit_host([*cases[:-2], slow, cases[-1]]).gap_s == pytest.approx(GAP_S, rel=0.2)


def test_a_host_never_takes_less_than_nothing():
    fast = [
        dataclasses.replace(case, row=dataclasses.replace(case.row, tpot_s=0.5 * (case.row.tpot_s or 0)))
        for case in (measured_with(0.0, 0.0, 8, users) for users in (2, 8))
    ]
    fit = fit_host(fast)
    assert (fit.gap_s, fit.row_s) == (0, 0)


def test_the_overlap_that_made_a_log_is_found_again():
    random = np.random.default_rng(1)
    requests = make.trace(random.integers(100, 900, 120), random.integers(20, 60, 120), np.arange(120) / 20)
    scenario = make.scenario(requests, served=True)
    calibration = constants_for(scenario.cluster.chip, scenario.precision, "calibrated", "vllm")
    kernel = dataclasses.replace(calibration.matmul["bf16"], overlap=OVERLAP)
    outcome = replay(scenario, dataclasses.replace(calibration, matmul={**calibration.matmul, "bf16": kernel}))
    name = next(iter(TRAINING_LOGS))
    log = MeasuredLog(name=name, stack="vllm", engine="vLLM 0.19.0", scenario=scenario, measured=outcome)
    assert fit_overlap(log) == pytest.approx(OVERLAP)
