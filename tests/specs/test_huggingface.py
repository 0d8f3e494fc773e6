"""`config.json` files as published and as transformers 5 saves them, against what transformers itself makes of them.

The oracle is `golden/huggingface.json`; `record_hf.py` writes it.
"""

import dataclasses
import json
import pathlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoserve.specs.config_json import MAX_CONFIG_BYTES
from nanoserve.specs.errors import WeightsError
from nanoserve.specs.huggingface import read_config
from nanoserve.specs.model_registry import model
from nanoserve.specs.models import ModelSpec
from nanoserve.specs.sizes import parameter_counts

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "huggingface.json").read_text())
CASES = GOLDEN["cases"]
FORMS = ("published", "saved")
RESOLVED = ("kv_heads", "head_size", "rope_theta", "tied_embeddings", "sliding_window_tokens")
REQUIRED = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
)

# The folder is rewritten by every example, so sharing it between them is safe.
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: pathlib.Path, config: Any) -> ModelSpec:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return read_config(folder)


def published(name: str, **changes: Any) -> dict[str, Any]:
    return {**CASES[name]["published"], **changes}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_reads_what_transformers_resolves(name: str, form: str, tmp_path: pathlib.Path):
    spec = read(tmp_path, CASES[name][form])
    assert {field: getattr(spec, field) for field in RESOLVED} == {field: CASES[name][field] for field in RESOLVED}
    assert (spec.rope_scaling is not None) == (CASES[name]["rope_type"] == "llama3")
    assert parameter_counts(spec).total == CASES[name]["parameters"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GOLDEN["published"])
def test_published_config_gives_the_shipped_spec(name: str, form: str, tmp_path: pathlib.Path):
    folder = tmp_path / name
    folder.mkdir()
    shipped = model(name)
    read_here = dataclasses.replace(read(folder, CASES[name][form]), hf_id=shipped.hf_id, source=shipped.source)
    assert read_here == shipped


def test_a_file_and_its_folder_are_the_same_model(tmp_path: pathlib.Path):
    assert read(tmp_path, published("llama-3.1-8b")) == read_config(str(tmp_path / "config.json"))


def test_legacy_key_type_names_the_rope_scaling(tmp_path: pathlib.Path):
    modern = published("llama-3.1-8b")
    scaling = dict(modern["rope_scaling"])
    legacy = {**modern, "rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}
    assert read(tmp_path, legacy) == read(tmp_path, modern)


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("absent", ["left out", "null"])
def test_missing_key_is_named(key: str, absent: str, tmp_path: pathlib.Path):
    config = published("llama-3.1-8b", **{key: None})
    if absent == "left out":
        del config[key]
    with pytest.raises(WeightsError, match=rf"config\.json: the key '{key}' is missing"):
        read(tmp_path, config)


@pytest.mark.parametrize("name", ["mistral-7b-v0.3", "qwen2.5-0.5b", "qwen3-8b", "mixtral-8x7b"])
def test_kv_heads_are_not_guessed_where_transformers_would_take_another_size(name: str, tmp_path: pathlib.Path):
    config = published(name)
    del config["num_key_value_heads"]
    with pytest.raises(WeightsError, match="'num_key_value_heads' is missing"):
        read(tmp_path, config)


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_incomplete_rope_scaling_names_the_key(key: str, tmp_path: pathlib.Path):
    config = json.loads(json.dumps(published("llama-3.1-8b")))
    del config["rope_scaling"][key]
    with pytest.raises(WeightsError, match=rf"rope_scaling: the key '{key}' is missing"):
        read(tmp_path, config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-3.1-8b", {"model_type": "lama"}, "model_type 'lama' is not supported.*Did you mean 'llama'"),
        ("llama-3.1-8b", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear' is not supported"),
        ("qwen2.5-7b", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        ("llama-3.1-8b", {"rope_scaling": [8.0]}, "rope_scaling must be an object"),
        ("phi-3-mini", {"partial_rotary_factor": 0.75}, "partial_rotary_factor"),
        ("phi-3-mini", {"rope_parameters": {"partial_rotary_factor": 0.75}}, "partial_rotary_factor"),
        ("llama-3.1-8b", {"attention_bias": True}, "attention_bias = true is not supported"),
        ("llama-3.1-8b", {"mlp_bias": True}, "mlp_bias = true is not supported"),
        ("llama-3.1-8b", {"hidden_act": "geglu"}, "hidden_act 'geglu' is not supported"),
        ("llama-3.1-8b", {"num_key_value_heads": 5}, "not a multiple of num_key_value_heads = 5"),
        ("llama-3.1-8b", {"hidden_size": 4097}, "hidden_size = 4097 is not a multiple"),
        ("llama-3.1-8b", {"num_hidden_layers": -1}, "num_hidden_layers must be a whole number"),
        ("llama-3.1-8b", {"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ("llama-3.1-8b", {"vocab_size": 10**400}, "vocab_size must be a whole number"),
        ("llama-3.1-8b", {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive finite number"),
        ("llama-3.1-8b", {"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ("qwen2.5-7b", {"use_sliding_window": True, "max_window_layers": 7}, "21 of 28 layers have a sliding window"),
        ("qwen3-8b", {"use_sliding_window": True, "layer_types": ["full_attention"]}, "layer_types must list 36"),
        ("gemma-2-2b", {"layer_types": ["full_attention"] + ["sliding_attention"] * 25}, "is no pattern in which"),
        ("gemma-3-1b", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true is not supported"),
        ("gemma-3-1b", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_type 'linear' is not supported"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [0]}, "some layers have no experts"),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, "some layers have no experts"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9 is more than the 8 experts"),
    ],
)
def test_what_cannot_be_computed_is_refused(name: str, changes: dict, message: str, tmp_path: pathlib.Path):
    with pytest.raises(WeightsError, match=message):
        read(tmp_path, published(name, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "must hold a JSON object"),
        (" " * (MAX_CONFIG_BYTES + 1), "larger than"),
    ],
)
def test_damaged_file_is_refused(content: str, message: str, tmp_path: pathlib.Path):
    with pytest.raises(WeightsError, match=message):
        read(tmp_path, content)


def test_absent_file_is_refused(tmp_path: pathlib.Path):
    with pytest.raises(WeightsError, match=r"config\.json: cannot be read"):
        read_config(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@shared_folder
@given(data=st.data())
def test_a_changed_value_gives_a_spec_or_a_weights_error(tmp_path: pathlib.Path, data: st.DataObject):
    name, form = data.draw(st.sampled_from(sorted(CASES))), data.draw(st.sampled_from(FORMS))
    config = json.loads(json.dumps(CASES[name][form]))
    holder = config
    if isinstance(config.get("rope_parameters"), dict) and data.draw(st.booleans()):
        holder = config["rope_parameters"]
    holder[data.draw(st.sampled_from(sorted(holder)))] = data.draw(JSON_VALUES)
    try:
        assert isinstance(read(tmp_path, config), ModelSpec)
    except WeightsError as error:
        assert "config.json" in str(error)


@shared_folder
@given(content=st.binary(max_size=64))
def test_any_bytes_give_a_weights_error(tmp_path: pathlib.Path, content: bytes):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WeightsError):
        read_config(tmp_path)
