"""GGUF models: names, row order and shape as Hugging Face has them, and refusals of what is not computed."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.models import RopeScaling
from nanoserve.weights.gguf import GgufTensors, half_split_rows
from nanoserve.weights.gguf_spec import spec_from_gguf
from tests.weights.factories import gguf_name, metadata_of, random_tensors, tiny_spec, write_gguf, write_model

SPECS = [
    tiny_spec(),
    tiny_spec(tied_embeddings=True, rope_theta=500000.0, norm_eps=1e-6),
    tiny_spec(family="qwen2", qkv_bias=True, sliding_window_tokens=32),
    tiny_spec(family="qwen3", qk_norm=True, tied_embeddings=True),
    tiny_spec(
        family="gemma3",
        qk_norm=True,
        tied_embeddings=True,
        sliding_window_tokens=32,
        full_attention_every=6,
        rope_theta=1e6,
        local_rope_theta=10000.0,
        query_scalar=16.0,
        scaled_embeddings=True,
        zero_centred_norms=True,
        post_norms=True,
        activation="gelu_tanh",
    ),
]


def extra_metadata(spec) -> dict[str, int]:
    window = spec.sliding_window_tokens
    return {f"{spec.family}.attention.sliding_window": window} if window else {}


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.family)
def test_spec_round_trips_through_metadata(tmp_path, spec):
    path = write_model(tmp_path / "m.gguf", spec, random_tensors(spec), **extra_metadata(spec))
    assert dataclasses.replace(spec_from_gguf(path), source="") == spec


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.family)
def test_tensors_come_back_under_hugging_face_names(tmp_path, spec):
    tensors = random_tensors(spec)
    source = GgufTensors(write_model(tmp_path / "m.gguf", spec, tensors, **extra_metadata(spec)))
    assert source.names() == tensors.keys()
    for name, array in tensors.items():
        heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}.get(name.split(".")[-2])
        expected = array if spec.family != "llama" or heads is None else half_split_rows(array, heads)
        expected = expected - 1 if spec.family == "gemma3" and "norm" in name else expected
        np.testing.assert_array_equal(source.read(name), expected, err_msg=name)


def rotate(x: np.ndarray, position: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rotary embedding of one head [h] in float64, rotating coordinate pairs (first[i], second[i])."""
    angles = position * 10000.0 ** (-np.arange(len(first)) / len(first))
    out = np.empty_like(x)
    out[first] = x[first] * np.cos(angles) - x[second] * np.sin(angles)
    out[second] = x[second] * np.cos(angles) + x[first] * np.sin(angles)
    return out


def test_half_split_rows_keep_attention_scores():
    heads, h, generator = 3, 8, np.random.default_rng(0)
    wq, wk = generator.standard_normal((2, heads * h, 5))
    x, y = generator.standard_normal((2, 5))
    even, odd = np.arange(0, h, 2), np.arange(1, h, 2)
    low, high = np.arange(h // 2), np.arange(h // 2, h)

    def scores(wq, wk, first, second):
        q, k = (wq @ x).reshape(heads, h), (wk @ y).reshape(heads, h)
        return [rotate(q[i], 7, first, second) @ rotate(k[i], 3, first, second) for i in range(heads)]

    interleaved = scores(wq, wk, even, odd)
    half_split = scores(half_split_rows(wq, heads), half_split_rows(wk, heads), low, high)
    np.testing.assert_allclose(half_split, interleaved, rtol=1e-12)
    assert not np.allclose(scores(wq, wk, low, high), interleaved)


def llama_cpp_rope_factors(scaling: RopeScaling, theta: float, head_size: int) -> np.ndarray:
    """A transcription of `LlamaModel.generate_extra_tensors` in llama.cpp's converter, one frequency at a time."""
    factors = []
    for i in range(0, head_size, 2):
        wavelength = 2 * np.pi * theta ** (i / head_size)
        low = scaling.original_context_tokens / scaling.low_freq_factor
        high = scaling.original_context_tokens / scaling.high_freq_factor
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(scaling.factor)
        else:
            smooth = (scaling.original_context_tokens / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, np.float32)


def write_with_rope_factors(path, spec, factors):
    stored = {gguf_name(n): t for n, t in random_tensors(spec).items()} | {"rope_freqs.weight": factors}
    return write_gguf(path, spec.family, metadata_of(spec), stored)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_scaling_is_recovered_from_its_factors(tmp_path, factor):
    scaling = RopeScaling(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context_tokens=8192)
    spec = tiny_spec(rope_theta=500000.0, rope_scaling=scaling)
    factors = llama_cpp_rope_factors(scaling, 500000.0, spec.head_size)
    path = write_with_rope_factors(tmp_path / "m.gguf", spec, factors)
    assert spec_from_gguf(path).rope_scaling == scaling
    assert "rope_freqs.weight" not in GgufTensors(path).names()


@pytest.mark.parametrize("factors", [np.arange(1, 9), np.zeros(8), np.full(8, np.nan), np.ones(7)], ids=str)
@pytest.mark.filterwarnings("error")
def test_other_rope_factors_are_refused(tmp_path, factors):
    path = write_with_rope_factors(tmp_path / "m.gguf", tiny_spec(), factors.astype(np.float32))
    with pytest.raises(WeightsError, match="rotary scaling"):
        spec_from_gguf(path)


def test_stored_types_are_kept_or_become_float32(tmp_path):
    spec = tiny_spec(layers=1, tied_embeddings=True)
    tensors = random_tensors(spec)
    stored = {gguf_name(n): t for n, t in tensors.items()}
    bf16 = stored["blk.0.ffn_up.weight"].astype(ml_dtypes.bfloat16)
    stored["blk.0.ffn_up.weight"] = bf16.view(np.uint8)
    stored["blk.0.ffn_gate.weight"] = stored["blk.0.ffn_gate.weight"].astype(np.float16)
    down = stored["blk.0.ffn_down.weight"]
    stored["blk.0.ffn_down.weight"] = quantize(down, GGMLQuantizationType.Q8_0)
    kinds = {"blk.0.ffn_up.weight": GGMLQuantizationType.BF16, "blk.0.ffn_down.weight": GGMLQuantizationType.Q8_0}
    source = GgufTensors(write_gguf(tmp_path / "m.gguf", "llama", metadata_of(spec), stored, kinds))
    up, gate, read_down = (source.read(f"model.layers.0.mlp.{n}_proj.weight") for n in ("up", "gate", "down"))
    assert [a.dtype for a in (up, gate, read_down)] == [ml_dtypes.bfloat16, np.float16, np.float32]
    np.testing.assert_array_equal(up.view(np.uint16), bf16.view(np.uint16))
    np.testing.assert_array_equal(gate, stored["blk.0.ffn_gate.weight"])
    np.testing.assert_allclose(read_down, down, atol=np.abs(down).max() / 127)
    assert gate.flags.writeable


BAD_METADATA = {
    "no layers": ({"llama.block_count": 0}, "block_count"),
    "layers beyond the tensors": ({"llama.block_count": 1 << 31}, "model.layers.2."),
    "heads not a multiple": ({"llama.attention.head_count_kv": 4}, "KV heads"),
    "heads per layer": ({"llama.attention.head_count": [6, 6]}, "head_count"),
    "infinite theta": ({"llama.rope.freq_base": float("inf")}, "freq_base"),
    "linear scaling": ({"llama.rope.scaling.type": "linear"}, "scaling.type"),
    "partial rotation": ({"llama.rope.dimension_count": 8}, "rotated"),
    "experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "split": ({"split.count": 2}, "llama-gguf-split"),
    "another width": ({"llama.embedding_length": 128}, "embed_tokens"),
    "head size zero by division": ({"llama.attention.head_count": 4096}, "KV heads|shape"),
    "name a number": ({"general.name": 3}, "general.name"),
}


@pytest.mark.parametrize(("metadata", "message"), BAD_METADATA.values(), ids=BAD_METADATA)
def test_metadata_that_does_not_fit_is_refused(tmp_path, metadata, message):
    spec = tiny_spec()
    path = write_model(tmp_path / "m.gguf", spec, random_tensors(spec), **metadata)
    with pytest.raises(WeightsError, match=message):
        GgufTensors(path)


def test_another_architecture_is_refused_with_the_nearest_one(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "qwen2moe", {}, {"x": np.zeros(4, np.float32)})
    with pytest.raises(WeightsError, match="Did you mean 'qwen2'"):
        spec_from_gguf(path)


def test_a_tensor_of_no_known_role_is_refused(tmp_path):
    spec = tiny_spec()
    stored = {gguf_name(n): t for n, t in random_tensors(spec).items()}
    path = write_gguf(
        tmp_path / "m.gguf", "llama", metadata_of(spec), stored | {"blk.0.ffn_gate_exps.weight": np.ones(4, np.float32)}
    )
    with pytest.raises(WeightsError, match=r"'blk\.0\.ffn_gate_exps\.weight' belongs to no model"):
        GgufTensors(path)


def test_an_unreadable_quantisation_names_those_that_work(tmp_path):
    spec = tiny_spec()
    stored = {gguf_name(n): t for n, t in random_tensors(spec).items()}
    kind = GGMLQuantizationType.TQ1_0
    stored["blk.0.ffn_up.weight"] = np.zeros((160, 54), np.uint8)
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata_of(spec), stored, {"blk.0.ffn_up.weight": kind})
    with pytest.raises(WeightsError, match=r"TQ1_0.*Q4_1"):
        GgufTensors(path)


def test_an_unknown_tensor_names_the_nearest_one(tmp_path):
    spec = tiny_spec()
    source = GgufTensors(write_model(tmp_path / "m.gguf", spec, random_tensors(spec)))
    with pytest.raises(WeightsError, match=r"nearest is 'model\.layers\.0\.mlp\.up_proj\.weight'"):
        source.read("model.layers.0.mlp.upp_proj.weight")


def test_a_file_cut_after_opening_is_refused_when_read(tmp_path):
    spec = tiny_spec()
    path = write_model(tmp_path / "m.gguf", spec, random_tensors(spec))
    source = GgufTensors(path)
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(WeightsError, match="changed while in use"):
        source.read("lm_head.weight")
