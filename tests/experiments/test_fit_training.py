"""`experiments/fit_training.py` prints what the constants' files say."""

import pathlib
import re

import pytest

from experiments import fit_training
from nanoserve.roofline import constants_files

SHARED = pathlib.Path(__file__).parents[3] / "shared"


@pytest.mark.skipif(not (SHARED / "facts").exists(), reason="published results are not at hand (looked in ../shared)")
def test_the_files_hold_what_the_command_prints(capsys):
    assert fit_training.main(["fit_training.py", f"--from={SHARED}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for stack, line in zip(fit_training.STACKS, lines[:2], strict=True):
        host = constants_files.load("h100_sxm", stack).entry("host", "step")
        gap_ms, row_us = (float(found) for found in re.findall(r"([\d.]+) (?:ms|us)", line)[:2])
        assert line.startswith(stack)
        assert host["gap_s"] == pytest.approx(gap_ms * 1e-3, abs=1e-4)
        assert host["row_s"] == pytest.approx(row_us * 1e-6, abs=2e-6)
    overlap = constants_files.load("rtx_pro_6000", "vllm").entry("matmul", "bf16")["overlap"]
    assert f"overlap {overlap:.2f}" in lines[2]


def test_missing_data_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert fit_training.main(["fit_training.py", f"--from={tmp_path}"]) == 2
    assert "published_throughput.csv" in capsys.readouterr().err
