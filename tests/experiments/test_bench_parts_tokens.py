"""The part that asks a real model: its judgement fails where answers are wrong, and its pieces are the model's file."""

import hashlib
import json

import numpy as np
import pytest

from experiments.bench import smollm2_pack
from experiments.bench.attention_timing import CPU
from experiments.bench.parts import Context, Shared, tokens
from experiments.bench.results_file import FAILED, MEASURED
from nanoserve.specs.errors import ConfigError, WeightsError
from nanoserve.weights.open import locate

PROMPTS = [
    tokens.Prompt(name="first", ids=(1, 2, 3), answer=(7, 8, 9), margins=(2.0, 0.2, 1.0), nll=1.5),
    tokens.Prompt(name="second", ids=(4, 5), answer=(6,), margins=(0.4,), nll=2.0),
]
SAID = -np.array([[1.0, 2.0, 0.3, 0.6, 0.9], [2.0, 0.5, np.nan, np.nan, np.nan]])
CASES = {case.name: case for case in tokens.cases(toy=True)}


class NoAccelerator:
    """A device as JAX shows one."""

    platform = "cpu"
    device_kind = "cpu"


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    options = {"effort": CPU, "clock": lambda: 0.0, "found": {}, "toy": True, "shared": Shared()}
    return Context(device=NoAccelerator(), scratch=tmp_path_factory.mktemp("scratch"), **options)


def test_an_answer_that_goes_on_past_the_references_is_its_equal():
    found = tokens.compared(PROMPTS, [[7, 8, 9, 2], [6]], exact=True)
    assert (found["status"], found["tokens"], found["equal_tokens"]) == (MEASURED, 4, 4)
    assert found["first_differences"] == []


@pytest.mark.parametrize("exact", [True, False])
def test_a_token_may_differ_where_the_reference_was_undecided_and_only_in_fewer_bits(exact):
    found = tokens.compared(PROMPTS, [[7, 5, 9], [6]], exact=exact)
    assert found["equal_tokens"] == 2  # what follows a difference is another text
    assert found["first_differences"] == [{"prompt": "first", "token": 1, "margin": 0.2}]
    assert found["status"] == (FAILED if exact else MEASURED)


def test_a_token_that_differs_where_the_reference_was_sure_is_named():
    found = tokens.compared(PROMPTS, [[5], [6]], exact=False)
    assert (found["status"], found["reason"]) == (FAILED, "first: token 0 differs, at a margin of 2")


def test_an_answer_cut_short_is_a_difference():
    assert tokens.compared(PROMPTS, [[7, 8], [6]], exact=True)["first_differences"][0]["token"] == 2


def test_float32_is_held_against_the_references_prompts():
    found = tokens.likelihoods(PROMPTS, SAID, None)
    assert found["status"] == MEASURED and found["reference_error"] < 1e-9
    assert found["tokens"] == 7
    assert found["nll"] == pytest.approx(np.nanmean(-SAID)) and found["nll_answers"] == pytest.approx(2.3 / 4)
    off = tokens.likelihoods(PROMPTS, SAID - 0.001, None)
    assert off["status"] == FAILED and "0.001 nats off the reference" in off["reason"]


@pytest.mark.parametrize(("factor", "status"), [(1.009, MEASURED), (0.991, MEASURED), (1.011, FAILED), (0.989, FAILED)])
def test_fewer_bits_may_move_a_likelihood_by_a_hundredth(factor, status):
    found = tokens.likelihoods(PROMPTS, SAID * factor, SAID)
    assert (found["status"], found["relative"]) == (status, pytest.approx(factor - 1))


def test_kernels_are_skipped_where_there_are_none():
    with pytest.raises(ConfigError, match="cpu has no attention kernels of ours"):
        tokens.attention_on(NoAccelerator(), CASES["decode_bf16_kernel"])


def test_without_the_model_or_its_pieces_the_reason_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2_pack, "_installed", lambda: None)
    with pytest.raises(ConfigError, match=r"lacks weights\.0, weights\.1, reference\.json.*smollm2_pack\.py"):
        smollm2_pack.opened(tmp_path, tmp_path)


def test_pieces_come_together_as_the_file_they_were_made_of_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2_pack, "_installed", lambda: None)
    content, folder, scratch = np.random.default_rng(0).bytes(1001), tmp_path / "pieces", tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "model").write_bytes(content)
    (tmp_path / "answers").write_text(json.dumps({"gguf_sha256": hashlib.sha256(content).hexdigest()}))
    written = smollm2_pack.write(tmp_path / "model", tmp_path / "answers", folder)
    assert [path.stat().st_size for path in written[:2]] == [501, 500]
    assert smollm2_pack.opened(scratch, folder).weights.read_bytes() == content
    (scratch / "smollm2.gguf").unlink()
    written[1].write_bytes(written[1].read_bytes()[::-1])
    with pytest.raises(ConfigError, match="not the file that the answers were recorded with"):
        smollm2_pack.opened(scratch, folder)


def test_the_model_in_pieces_says_what_the_reference_says(monkeypatch, tmp_path, shared, context):
    try:
        smollm2_pack.write(locate(smollm2_pack.PACKAGE), shared / "references" / "smollm2_reference.json", tmp_path)
    except WeightsError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(smollm2_pack, "_installed", lambda: None)
    monkeypatch.setattr(smollm2_pack, "FOLDER", tmp_path)
    found = tokens.measure(CASES["prefill_f32_xla"], context)
    assert found["status"] == MEASURED, found["reason"]
    assert found["reference_error"] < tokens.REFERENCE_TOLERANCE and found["tokens"] > 150
    assert tokens.columns(CASES["prefill_f32_xla"].sizes() | found)["attention"] == "xla"
