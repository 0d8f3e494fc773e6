"""GGUF checkpoints (llama.cpp's format) of llama, qwen2 and qwen3 models as a TensorSource and a ModelSpec.

Invariants: names, orientation and the order of q and k rows are Hugging Face's whatever the file has; F16 and BF16
tensors keep their type, every other type is dequantised to float32 (by the `gguf` package, which llama.cpp publishes).

Source: llama.cpp convert_hf_to_gguf.py as of gguf 0.19 (names, metadata keys, permutation). Next: `gguf_header`.
"""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from nanoserve.specs.errors import WeightsError, nearest
from nanoserve.specs.models import ModelSpec, RopeScaling
from nanoserve.weights import files, names
from nanoserve.weights.gguf_header import Header, TensorInfo, read_header

_FAMILIES = ("llama", "qwen2", "qwen3")
# llama.cpp rotates neighbouring pairs for this architecture and stores q and k rows to suit (LLAMA_ROPE_TYPE_NORM).
_INTERLEAVED_FAMILIES = ("llama",)

_PLAIN = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
_QUANTISED = {
    getattr(GGMLQuantizationType, name) for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
}

_GLOBAL_NAMES = {
    "token_embd.weight": names.EMBEDDING,
    "output_norm.weight": names.FINAL_NORM,
    "output.weight": names.HEAD,
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(\w+)\.(weight|bias)", re.ASCII)
# Llama 3.1's stretched frequencies, one factor per rotated pair: it becomes `ModelSpec.rope_scaling`, not a weight.
_ROPE_FACTORS = "rope_freqs.weight"


class GgufTensors:
    """The tensors of one GGUF file under their Hugging Face names.

    Args:
      path: a GGUF file; its header is read and checked here, tensor data only by `read`.

    Raises:
      WeightsError: the file is damaged, of another architecture, or lacks tensors that its metadata promises.
    """

    def __init__(self, path: Path):
        self._header = read_header(path)
        self._spec = _spec_from_header(self._header)
        self._gguf_names = {_canonical_name(path, n): n for n in self._header.tensors if n != _ROPE_FACTORS}
        self.description = f"GGUF {path}"
        names.check_tensors(self, self._spec)

    @property
    def spec(self) -> ModelSpec:
        """The model's shape as the metadata states it."""
        return self._spec

    def names(self) -> frozenset[str]:
        return frozenset(self._gguf_names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape

    def read(self, name: str) -> np.ndarray:
        array = read_tensor(self._header.path, self._info(name))
        if self._spec.family in _INTERLEAVED_FAMILIES:
            if ".q_proj." in name:
                return half_split_rows(array, self._spec.heads)
            if ".k_proj." in name:
                return half_split_rows(array, self._spec.kv_heads)
        return array

    def fingerprint(self) -> str:
        return files.fingerprint([self._header.path])

    def _info(self, name: str) -> TensorInfo:
        if name not in self._gguf_names:
            raise names.unknown_tensor(self, name)
        return self._header.tensors[self._gguf_names[name]]


def spec_from_gguf(path: Path) -> ModelSpec:
    """The shape of the model in a GGUF file.

    Raises:
      WeightsError: the file is damaged, or describes a model that nanoserve does not compute.
    """
    return _spec_from_header(read_header(path))


def read_tensor(path: Path, info: TensorInfo) -> np.ndarray:
    """Reads one tensor and dequantises it when it is quantised.

    Returns:
      An array of `info.shape`: float32, or float16 / bfloat16 where the file has those.

    Raises:
      WeightsError: the type is not supported, or the file has been cut since its header was read.
    """
    raw = np.frombuffer(bytearray(files.read_at(path, info.offset, info.nbytes)), np.uint8)
    if info.kind in _PLAIN:
        return raw.view(_PLAIN[info.kind]).reshape(info.shape)
    # Dequantisation computes in blocks of a row; a scale of inf or nan is the file's and is passed on without a warning.
    with np.errstate(all="ignore"):
        return dequantize(raw.reshape(*info.shape[:-1], -1), info.kind)


def half_split_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """Reorders rows of q or k from interleaved rotary pairs (2i, 2i+1) to Hugging Face's halves (i, i + h/2).

    Args:
      array: [heads * h, ...], h the head size.
      heads: H for q, K for k.

    Returns:
      A reordered copy of `array`.

    Source: inverse of `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    rows = array.shape[0]
    pairs = array.reshape(heads, rows // heads // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)


def _canonical_name(path: Path, gguf_name: str) -> str:
    if gguf_name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[gguf_name]
    match = _LAYER_TENSOR.fullmatch(gguf_name)
    if match and match[2] in _LAYER_NAMES:
        return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    raise WeightsError(
        f"{path}: tensor '{gguf_name}' belongs to no model that nanoserve computes. Use a dense one of: {', '.join(_FAMILIES)}"
    )


def _spec_from_header(header: Header) -> ModelSpec:
    family = _check_model(header)

    def count(key: str, default: int | None = None) -> int:
        value = header.get(f"{family}.{key}", int, default)
        if value < 1:
            raise WeightsError(f"{header.path}: metadata key '{family}.{key}' = {value} must be positive")
        return value

    hidden, heads = count("embedding_length"), count("attention.head_count")
    kv_heads, head_size = (
        count("attention.head_count_kv", heads),
        count("attention.key_length", max(hidden // heads, 1)),
    )
    if heads % kv_heads or head_size % 2 or count("rope.dimension_count", head_size) != head_size:
        raise WeightsError(
            f"{header.path}: {heads} heads over {kv_heads} KV heads of size {head_size}, "
            f"{count('rope.dimension_count', head_size)} of it rotated, is not a shape that nanoserve computes"
        )
    name = header.get("general.name", str, header.path.stem)
    window = header.metadata.get(f"{family}.attention.sliding_window")
    return ModelSpec(
        name="-".join(name.lower().split()),
        family=family,
        layers=count("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        ffn=count("feed_forward_length"),
        vocab=_embedding(header).shape[0],
        max_context_tokens=count("context_length"),
        rope_theta=_positive(header, f"{family}.rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(header, family, head_size),
        tied_embeddings="output.weight" not in header.tensors,
        norm_eps=_positive(header, f"{family}.attention.layer_norm_rms_epsilon"),
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in header.tensors,
        sliding_window_tokens=None if window is None else count("attention.sliding_window"),
        source=f"metadata of {header.path.name}",
    )


def _check_model(header: Header) -> str:
    """The architecture, after refusing files that hold only a part of a model or one that is not dense."""
    family = header.get("general.architecture", str)
    if family not in _FAMILIES:
        raise WeightsError(f"{header.path}: architecture '{family}' is not supported.{nearest(family, _FAMILIES)}")
    if header.get("split.count", int, 1) > 1:
        raise WeightsError(f"{header.path}: is one part of a split model. Merge it with `llama-gguf-split --merge`")
    if header.get(f"{family}.expert_count", int, 0):
        raise WeightsError(f"{header.path}: is a mixture of experts, which is simulated but not computed")
    supported = _PLAIN.keys() | _QUANTISED
    for name, info in header.tensors.items():
        if info.kind not in supported:
            raise WeightsError(
                f"{header.path}: tensor '{name}' has type {info.kind.name}, which is not supported. "
                f"Quantise the model to one of: {', '.join(sorted(k.name for k in supported))}"
            )
    return family


def _embedding(header: Header) -> TensorInfo:
    info = header.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2:
        raise WeightsError(
            f"{header.path}: tensor 'token_embd.weight' [vocabulary, hidden] is missing. Download it again"
        )
    return info


def _positive(header: Header, key: str, default: float | None = None) -> float:
    """A positive float of the metadata, at the seven digits that a float32 holds (1e-5, not 9.999999747378752e-06)."""
    value = float(f"{header.get(key, float, default):.7g}")
    if not 0 < value < float("inf"):
        raise WeightsError(f"{header.path}: metadata key '{key}' = {value} must be positive and finite")
    return value


def _rope_scaling(header: Header, family: str, head_size: int) -> RopeScaling | None:
    """Llama 3's frequency scaling. The file has one factor per rotated pair; the parameters are recovered and checked."""
    kind = header.get(f"{family}.rope.scaling.type", str, "none")
    if kind not in ("none", "llama3"):
        raise WeightsError(f"{header.path}: rotary scaling '{kind}' is not supported. Use a model without it")
    info = header.tensors.get(_ROPE_FACTORS)
    if info is None:
        return None
    factors = read_tensor(header.path, info).astype(np.float64)
    scaling = RopeScaling(
        factor=round(float(np.nan_to_num(factors).max()), 3),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context_tokens=8192,
    )
    theta = _positive(header, f"{family}.rope.freq_base", 10000.0)
    if factors.shape != (head_size // 2,) or not np.allclose(factors, _llama3_factors(scaling, theta, head_size), 1e-3):
        raise WeightsError(f"{header.path}: '{_ROPE_FACTORS}' is not Llama 3's scaling. Use the safetensors checkpoint")
    return scaling


def _llama3_factors(scaling: RopeScaling, theta: float, head_size: int) -> np.ndarray:
    """What each rotary frequency is divided by, [h/2] (Hugging Face `_compute_llama3_parameters`)."""
    inverse_wavelength = theta ** -(np.arange(0, head_size, 2) / head_size) / (2 * np.pi)
    periods = scaling.original_context_tokens * inverse_wavelength
    smooth = (periods - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0, 1)
    return 1 / ((1 - smooth) / scaling.factor + smooth)
