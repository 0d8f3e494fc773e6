"""The benchmark of the host's work: what it runs is a whole engine, and mistakes are one line."""

import json

import pytest

from experiments.bench import host_gap


def test_every_plan_is_measured_with_its_parts(tmp_path, capsys):
    out = tmp_path / "result.json"
    assert host_gap.main(["host_gap.py", "--rows=2", "--plans=10", f"--out={out}"]) == 0
    report = json.loads(out.read_text())
    assert [each["horizon"] for each in report["results"]] == list(host_gap.HORIZONS)
    for each in report["results"]:
        assert each["plans"] == 11  # the prompts', and ten that decode
        assert set(each["parts_s"]) == {"plan", "sync", "arrays", "call", "submit", "result", "apply"}
        assert each["parts_s"]["submit"] > each["parts_s"]["call"] > 0
        assert each["step_s"] <= each["host_s"]
    assert capsys.readouterr().out.count("2 rows, ") == len(host_gap.HORIZONS)


@pytest.mark.parametrize("flag", ["--rows=0", "--plans=9"])
def test_too_little_to_measure_is_one_line(flag, capsys):
    assert host_gap.main(["host_gap.py", flag]) == 2
    assert capsys.readouterr().err.startswith("error: --rows must be")
