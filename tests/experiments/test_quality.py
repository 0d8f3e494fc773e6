"""The comparison of precisions: its figures on a model small enough to run here, and the page made of recorded ones."""

import json

import numpy as np
import pytest

from experiments import quality, quality_page
from nanoserve.specs.model_registry import model
from nanoserve.weights.random import RandomTensors

TINY = model("tiny-llama")
PASSAGES = [
    quality.Passage(kind, tuple(np.random.default_rng([seed, 5]).integers(TINY.vocab, size=40).tolist()), first)
    for seed, (kind, first) in enumerate([("answers", 8), ("text", 1), ("text", 1)])
]
NAMES = ["int8", "int4"]


@pytest.fixture(scope="module")
def measured():
    source = RandomTensors(TINY, 0, np.float32)
    cases = {"f32": quality.F32} | {name: quality.CASES[name] for name in NAMES}
    return quality.measured(TINY, source, PASSAGES, cases)


def test_float32_agrees_with_itself_on_every_token(measured):
    for kind, tokens in (("answers", 32), ("text", 78)):
        found = measured["f32"][kind]
        assert (found["tokens"], found["top1_agreement"]) == (tokens, 1.0)
        assert found["kl_mean"] == found["kl_p99"] == 0.0
        assert found["nll"] == found["nll_f32"] > 0


def test_fewer_bits_move_the_distribution_further(measured):
    kl = {name: measured[name]["text"]["kl_mean"] for name in NAMES}
    assert 0 < kl["int8"] < 1e-3 < kl["int4"] / 2 < 0.1
    assert measured["int8"]["text"]["top1_agreement"] > 0.9


def test_the_page_is_what_the_recorded_figures_make():
    figures = json.loads(quality.RESULTS.read_text())
    assert quality.PAGE.read_text() == quality_page.page(figures)
    assert list(figures["cases"]) == list(quality.CASES)


def test_the_recorded_figures_are_where_published_ones_are():
    """int8 weights and 8-bit KV are next to lossless, 4 bits without calibration are not."""
    cases = json.loads(quality.RESULTS.read_text())["cases"]
    assert cases["int8"]["text"]["kl_mean"] < 0.01 and cases["kv_int8"]["text"]["kl_mean"] < 0.01
    assert cases["int8"]["text"]["kl_mean"] * 10 < cases["int4"]["text"]["kl_mean"]


def test_an_unknown_precision_is_named(capsys):
    assert quality.main(["quality.py", "--cases=int9"]) == 2
    assert "no precision 'int9'. Did you mean" in capsys.readouterr().err
