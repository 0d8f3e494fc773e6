"""The replay benchmark: its load, its figures, and one line for what the user can mend."""

import json

import numpy as np
import pytest

from experiments.bench import replay
from nanoserve.specs.model_registry import model

LOG = "\n".join(
    ["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"2023-11-16 18:15:{s},{s * 400},{s}" for s in range(10, 20))]
)


@pytest.fixture
def path(tmp_path) -> str:
    """A log of ten requests, most of which pass the context of the model."""
    file = tmp_path / "log.csv"
    file.write_text(LOG + "\n")
    return str(file)


def test_lengths_are_pairs_of_the_trace_cut_to_the_context(path):
    load = replay.load_of(path, 500)
    context = model(replay.MODEL).max_context_tokens
    pairs = set(zip(load.prompt_tokens.tolist(), load.output_tokens.tolist(), strict=True))
    assert pairs == {(min(s * 400, context - s), s) for s in range(10, 20)}
    assert np.diff(load.arrival_s).mean() == pytest.approx(1 / replay.RATE_RPS, rel=0.2)


def test_without_a_trace_the_quantiles_are_those_of_the_preset():
    load = replay.load_of(None, 2000)
    assert np.median(load.output_tokens) == pytest.approx(129, rel=0.03)
    assert np.median(load.prompt_tokens) == pytest.approx(1020, rel=0.03)


def test_the_same_load_comes_again(path):
    first, second = replay.load_of(path, 50), replay.load_of(path, 50)
    assert (first.arrival_s == second.arrival_s).all() and (first.prompt_tokens == second.prompt_tokens).all()


def test_it_prints_and_writes_what_it_measured_and_horizons_change_no_event(path, tmp_path, capsys):
    out = tmp_path / "replay.json"
    assert replay.main(["replay.py", "--requests=30", f"--trace={path}", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "requests/s" in printed and "events identical" in printed
    figures = json.loads(out.read_text())
    together, single = figures["rows"]
    assert figures["events_identical"] and together["events_sha256"] == single["events_sha256"]
    assert together["requests"] == single["requests"] == 30
    assert together["steps"] == single["steps"] == single["plans"] > together["plans"]
    assert together["peak_bytes"] > 10e6


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--requests=0", "--requests=0"), ("--requests=many", "--requests=many"), ("--trace=no.csv", "no.csv")],
)
def test_what_the_user_can_mend_is_one_line(argument, message, capsys):
    assert replay.main(["replay.py", argument]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
