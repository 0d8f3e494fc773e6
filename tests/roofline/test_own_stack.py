"""Constants of our own stack: known ones come back out of a benchmark's results, and steps say how wrong they are."""

import copy
import dataclasses

import numpy as np
import pytest

from nanoserve.roofline import constants_files
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.fit_steps import fit_steps, held_out_steps
from nanoserve.roofline.measured import HostGap
from nanoserve.roofline.measured_bench import operations, read_found, steps
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.own_stack import calibrate
from nanoserve.specs.errors import ConfigError
from tests.roofline import benchmark
from tests.roofline.benchmark import BF16, H100, INT4, KNOWN

NOISE = 0.02
FOUND, FOUND_IN_NOISE = 0.01, 0.05  # relative


@pytest.fixture(scope="module")
def exact():
    return calibrate(benchmark.found(), H100, source="h100.json")


@pytest.fixture(scope="module")
def noisy():
    return calibrate(benchmark.results(NOISE)["parts"], H100, source="h100.json")


def of(found, precision=BF16):
    return benchmark.expected(found.calibration(H100, precision))


@pytest.mark.parametrize("name", benchmark.expected(KNOWN))
def test_constants_that_made_the_times_of_a_benchmark_are_found_again(name, exact):
    known, found = benchmark.expected(KNOWN)[name], of(exact)[name]
    for field in ("overhead_s", "memory_share", "compute_share", "item_s"):
        assert getattr(found, field) == pytest.approx(getattr(known, field), rel=FOUND), (name, field)


def test_host_gaps_are_found_again_and_steps_that_no_fit_saw_are_predicted(exact):
    calibration = exact.calibration(H100, BF16)
    for field in ("host_call_s", "host_gap_s", "host_row_s"):
        assert getattr(calibration, field) == pytest.approx(getattr(KNOWN, field), rel=FOUND), field
    assert exact.steps.test.p90 < FOUND and exact.steps.held_out.sum() >= 6


def test_what_the_bench_measures_unasked_is_enough_for_every_constant(exact):
    usual = calibrate(benchmark.found(extras=False), H100, source="h100.json")
    found = {f"{fit.group.kind} {fit.group.variant}" for fit in usual.fits}
    assert found >= {"matmul bf16", "matmul bf16_int4", "attention_decode bf16", "attention_prefill bf16"}
    assert usual.steps is not None and usual.steps.test.p90 < FOUND
    for name, known in benchmark.expected(KNOWN).items():
        assert of(usual)[name].memory_share == pytest.approx(known.memory_share, rel=2 * FOUND), name


@pytest.mark.parametrize("name", ["matmul bf16", "matmul bf16_int4", "decode"])
def test_noise_moves_constants_by_little_more_than_itself(name, noisy):
    """Those that decide: prefill attention hardly waits for memory, and a step hardly for element-wise kernels."""
    assert of(noisy)[name].memory_share == pytest.approx(
        benchmark.expected(KNOWN)[name].memory_share, rel=FOUND_IN_NOISE
    )


def test_noise_moves_what_constants_predict_by_no_more_than_thrice_itself(noisy, exact):
    for fitted, true in zip(noisy.fits, exact.fits, strict=True):
        assert fitted.predicted == pytest.approx(true.group.seconds, rel=3 * NOISE), fitted.group.rows
    for line, true in zip(noisy.steps.lines, exact.steps.lines, strict=True):
        assert line.predicted_s == pytest.approx(true.measured_s, rel=3 * NOISE), line.name


def test_weights_of_another_dtype_than_they_are_multiplied_in_have_constants_of_their_own(exact):
    calibration = exact.calibration(H100, INT4)
    assert calibration.matmul_for("bf16", "int4") != calibration.matmul_for("bf16", "bf16")
    assert calibration.matmul_for("bf16", "fp4") == calibration.matmul_for("bf16", "bf16")  # not measured
    stored = {op.name: op.stored for op in step_ops(benchmark.model("llama-3.1-70b"), benchmark.CLUSTER, INT4, _one())}
    assert stored["gate_up"] == "int4" and stored["head"] == "bf16"


def _one():
    return steps(benchmark.found())[0].counts


def test_what_was_not_measured_is_taken_from_the_chips_usual_stack_and_says_so(exact):
    usual = constants_for(H100, BF16, "calibrated")
    calibration = exact.calibration(H100, BF16)
    assert calibration.collectives == usual.collectives
    assert calibration.sources["collectives"].endswith("as in h100_sxm.vllm.json")
    assert "all_reduce" not in exact.file.constants
    fp8 = exact.file.entry("attention_prefill", "fp8")
    assert fp8["source"] == "borrowed from attention_prefill bf16: nothing in h100.json has it" and "fit" not in fp8


def test_the_error_on_held_out_steps_is_what_a_summary_says(exact):
    validation = exact.calibration(H100, BF16).validation
    assert validation.rows == exact.steps.held_out.sum() and validation.sources == tuple(exact.steps.held_out_names)
    assert str(validation).startswith(
        f"mean absolute error on {validation.rows} whole steps of our own that no constant was fitted to: step "
    )


def test_a_file_of_our_own_is_read_back_as_it_was_written(exact, tmp_path, monkeypatch):
    constants_files.save(tmp_path / exact.file.name, exact.file)
    assert exact.file.name == "h100_sxm.nanoserve.json"
    (tmp_path / "h100_sxm.vllm.json").write_text((constants_files.FOLDER / "h100_sxm.vllm.json").read_text())
    monkeypatch.setattr(constants_files, "FOLDER", tmp_path)
    monkeypatch.setattr(constants_files, "VALIDATION", tmp_path / "none.json")
    constants_files.load.cache_clear()
    try:
        read = constants_for(H100, BF16, "calibrated", "nanoserve")
    finally:
        constants_files.load.cache_clear()
    assert dataclasses.replace(read, sources={}) == dataclasses.replace(exact.calibration(H100, BF16), sources={})


# ---- steps ----


def test_a_third_of_the_steps_of_every_model_and_kind_is_held_out_and_order_does_not_matter():
    measured = steps(benchmark.found())
    held_out = held_out_steps(measured)
    of_kinds = {}
    for each, out in zip(measured, held_out, strict=True):
        of_kinds.setdefault((each.model.name, each.precision, each.kind), []).append(bool(out))
    assert all(sum(out) == (len(out) + 1) // 3 for out in of_kinds.values()) and len(of_kinds) >= 4
    shuffled = np.random.default_rng(0).permutation(len(measured))
    assert np.array_equal(held_out_steps([measured[row] for row in shuffled]), held_out[shuffled])


def test_held_out_steps_do_not_touch_the_constants():
    measured = steps(benchmark.found())
    changed = [
        dataclasses.replace(step, step_s=7 * step.step_s) if out else step
        for step, out in zip(measured, held_out_steps(measured), strict=True)
    ]
    clean, dirty = (fit_steps(each, H100, lambda _: KNOWN) for each in (measured, changed))
    assert (clean.elementwise, clean.host) == (dirty.elementwise, dirty.host) and dirty.test.p50 > 0.5 > clean.test.p50


def test_steps_faster_than_their_operations_give_no_constant_below_zero_or_above_the_datasheet():
    calls = (HostGap(1, 1, 0.0, 1.0),)
    measured = [dataclasses.replace(s, step_s=0.5 * s.step_s, calls=calls) for s in steps(benchmark.found())]
    found = fit_steps(measured, H100, lambda _: KNOWN)
    assert found.elementwise == {"overhead_s": 0.0, "memory_share": 1.0} and not any(found.host.values())
    assert found.test.p50 > 0.5  # and the error says that something is wrong


# ---- what is too little, or not of the chip ----


def test_too_little_of_something_is_left_out_by_name():
    few = copy.deepcopy(benchmark.found())
    few["matmul"] = {name: {**record, "scheme": "int8"} for name, record in list(few["matmul"].items())[:3]}
    few["step"] = dict(list(few["step"].items())[:1])
    few["attention"] = dict(list(few["attention"].items())[:2])
    found = calibrate(few, H100, source="h100.json")
    assert not found.fits and found.steps is None and not found.file.validation
    for what in ("bf16 KV: 2 rows", "int8 weights multiplied in bf16: 3 rows"):
        assert any(f"h100.json, {what}" in why for why in found.left_out)
    assert "1 whole steps are too few to fit to and to hold some out" in found.left_out
    assert found.empty


@pytest.mark.parametrize("run", [{"device": "cpu", "absolute_times_count": False}, {"device": "NVIDIA H100 PCIe"}])
def test_results_of_another_device_or_of_no_account_are_no_rows(run, tmp_path):
    found = read_found(benchmark.write(tmp_path / "h100.json", **run), H100)
    assert not list(operations(found, "h100.json")) and not steps(found)


def test_cases_that_were_skipped_or_failed_are_no_rows(tmp_path):
    content = benchmark.found()
    for part, status in (("attention", "failed"), ("matmul", "skipped"), ("step", "failed")):
        content[part] = {name: {"run": 0, "status": status, "reason": "why"} for name in content[part]}
    assert not list(operations(content, "h100.json")) and not steps(content)


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": []}'])
def test_a_file_that_is_no_result_is_an_error(tmp_path, text):
    path = tmp_path / "h100.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not a file of results"):
        read_found(path, H100)
