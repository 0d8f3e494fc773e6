"""Checkpoints are recognised by content, and what cannot be opened says what to do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nanoserve.specs.errors import WeightsError
from nanoserve.weights import orbax
from nanoserve.weights.open import open_weights, spec_of
from tests.weights.factories import random_tensors, tiny_spec, write_model

ROOT = Path(__file__).parents[2]
SPEC = tiny_spec(tied_embeddings=True, layers=1)
TENSORS = random_tensors(SPEC)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": SPEC.layers,
    "hidden_size": SPEC.hidden,
    "num_attention_heads": SPEC.heads,
    "num_key_value_heads": SPEC.kv_heads,
    "head_dim": SPEC.head_size,
    "intermediate_size": SPEC.ffn,
    "vocab_size": SPEC.vocab,
    "max_position_embeddings": SPEC.max_context_tokens,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def make_gguf(folder):
    return write_model(folder / "weights.bin", SPEC, TENSORS)


def make_safetensors_file(folder):
    save_file(TENSORS, folder / "weights.bin")
    return folder / "weights.bin"


def make_safetensors_folder(folder):
    save_file(TENSORS, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def make_orbax(folder):
    orbax.save(folder / "weights", TENSORS)
    return folder / "weights"


@pytest.mark.parametrize("make", [make_gguf, make_safetensors_file, make_safetensors_folder, make_orbax])
def test_every_format_is_recognised_by_content(tmp_path, make):
    path = make(tmp_path)
    source = open_weights(str(path), SPEC)
    assert source.names() == TENSORS.keys()
    assert str(path) in source.description
    np.testing.assert_array_equal(source.read("model.norm.weight"), TENSORS["model.norm.weight"])
    assert source.fingerprint() == open_weights(path).fingerprint()


@pytest.mark.parametrize("make", [make_gguf, make_safetensors_folder])
def test_the_shape_is_read_with_the_weights(tmp_path, make):
    found = spec_of(make(tmp_path))
    for field in ("family", "layers", "hidden", "heads", "kv_heads", "head_size", "ffn", "vocab", "tied_embeddings"):
        assert getattr(found, field) == getattr(SPEC, field), field


def test_weights_of_another_model_are_refused(tmp_path):
    path = make_safetensors_folder(tmp_path)
    with pytest.raises(WeightsError, match=r"'lm_head\.weight' of model 'tiny' is missing"):
        open_weights(path, tiny_spec(layers=1))


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    for path in (tmp_path / "absent", "bad\0name"):
        with pytest.raises(WeightsError, match="no such file or folder"):
            open_weights(path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors"):
        open_weights(tmp_path)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(WeightsError, match=r"Give the file itself: .*a\.gguf"):
        open_weights(tmp_path)


def test_a_shape_without_config_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json"):
        spec_of(make_safetensors_file(tmp_path))


def install(folder, name: str, files: dict[str, bytes]) -> None:
    """Lays out an installed distribution, whose module fails when it is imported."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    files = {f"{name}/__init__.py": b"raise RuntimeError('imported')"} | files
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


def test_a_package_is_searched_without_importing_it(tmp_path, monkeypatch):
    install(tmp_path, "carrier", {"carrier/m.gguf": make_gguf(tmp_path).read_bytes()})
    monkeypatch.syspath_prepend(tmp_path)
    assert open_weights("package:carrier").names() == TENSORS.keys()
    assert "carrier" not in sys.modules


@pytest.mark.parametrize("files", [{}, {"carrier/a.gguf": b"", "carrier/b.gguf": b""}])
def test_a_package_must_hold_exactly_one_gguf_file(tmp_path, monkeypatch, files):
    install(tmp_path, "carrier", files)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=rf"holds {len(files)} GGUF files"):
        open_weights("package:carrier")


@pytest.mark.parametrize("name", ["no-such-distribution", "", "../x"])
def test_an_absent_package_says_how_to_install_it(name):
    with pytest.raises(WeightsError, match="`make`"):
        open_weights(f"package:{name}")


def test_opening_does_not_import_jax():
    modules = ", ".join(f"nanoserve.weights.{name}" for name in ("open", "orbax", "gguf", "safetensors", "tokenizer"))
    code = f"import sys, {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
