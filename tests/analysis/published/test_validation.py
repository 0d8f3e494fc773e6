"""Errors are summed up as by hand, and what was trained on is kept apart."""

import dataclasses

import pytest

from nanoserve.analysis.published.comparison import Comparison, Value, compare_row, training_of
from nanoserve.analysis.published.rows import Case, case_of
from nanoserve.analysis.published.targets import TARGETS, judge
from nanoserve.analysis.published.validation import errors_by, summarise, validation_entries
from tests.analysis.published import factories as make


def comparison(error: float = 0.1, **changes) -> Comparison:
    found = case_of(make.row())
    assert isinstance(found, Case)
    return dataclasses.replace(
        compare_row(found, {"ttft": 0.2, "tpot": 0.012 * (1 + error), "throughput": 1.0}), **changes
    )


def test_an_error_is_relative_and_signed():
    assert Value(measured=2.0, predicted=1.5).error == -0.25


def test_a_summary_is_of_sizes_and_its_bias_of_signs():
    found = summarise([0.1, -0.3, 0.2, -0.2])
    assert (found.rows, found.mean_abs, found.p50, found.bias) == (4, pytest.approx(0.2), 0.2, pytest.approx(-0.05))
    assert found.p90 == pytest.approx(0.27)


def test_a_row_is_compared_only_in_what_it_measured():
    found = comparison()
    assert set(found.values) == {"ttft", "tpot"}, "no throughput was published"
    assert found.values["tpot"].error == pytest.approx(0.1)
    assert (found.chip, found.tensor, found.constants) == ("h100_sxm", 4, "vllm")


def test_groups_are_sorted_and_hold_their_own_rows():
    rows = [comparison(0.1), comparison(-0.3), comparison(0.2, chip="a_chip")]
    found = errors_by(rows, ("chip", "tensor"))
    assert list(found) == [("a_chip", "4"), ("h100_sxm", "4")]
    assert found["h100_sxm", "4"]["tpot"].mean_abs == pytest.approx(0.2)


def test_training_rows_and_rows_with_a_caveat_are_not_the_error_of_a_mode():
    rows = [comparison(0.1), comparison(9.0, training="host gap"), comparison(9.0, caveat="a stack of 2023")]
    entries = validation_entries(rows, "a command")
    assert list(entries) == ["h100_sxm/vllm/calibrated"]
    entry = entries["h100_sxm/vllm/calibrated"]
    assert (entry["rows"], entry["command"]) == (1, "a command")
    assert entry["tpot"] == {"mean_abs": 0.1, "p50": 0.1, "p90": 0.1}


@pytest.mark.parametrize(("engine", "tensor", "trained"), [("vllm 0.12.0", 8, True), ("vllm 0.12.0", 4, False)])
def test_rows_that_a_constant_was_fitted_on_say_so(engine, tensor, trained):
    found = case_of(make.row(engine=engine, tensor=tensor, model="Qwen3-32B"))
    assert isinstance(found, Case)
    assert bool(training_of(found)) == trained


def test_a_target_is_reached_by_the_rows_that_belong_to_it():
    good, bad = judge([comparison(0.04)]), judge([comparison(0.04), comparison(0.2)])
    tpot = next(i for i, verdict in enumerate(good) if verdict.target.metric == "tpot")
    assert good[tpot].reached
    assert not bad[tpot].reached
    assert bad[tpot].value == pytest.approx(0.12)


def test_targets_without_rows_are_left_out():
    assert {verdict.target.rows for verdict in judge([comparison()])} == {"vLLM, Llama-70B fp8, H100"}
    assert len({target.rows for target in TARGETS}) > 5
