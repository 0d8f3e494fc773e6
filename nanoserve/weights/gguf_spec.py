"""The shape of the model in a GGUF file, from its metadata and tensor directory.

Only dense llama, qwen2, qwen3 and gemma3 models pass; whatever else a file describes is refused with its reason: a
wrong guess would compute nonsense. Source: llama.cpp convert_hf_to_gguf.py as of gguf 0.19 (keys). Next: `gguf`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from nanoserve.specs.errors import WeightsError, nearest
from nanoserve.specs.models import ModelSpec, RopeScaling
from nanoserve.weights import files
from nanoserve.weights.gguf_header import Header, TensorInfo, read_header

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
# Llama 3.1's stretched frequencies, one factor per rotated pair: it becomes `ModelSpec.rope_scaling`, not a weight.
ROPE_FACTORS = "rope_freqs.weight"


def spec_from_gguf(path: Path) -> ModelSpec:
    """The shape of the model in the GGUF file at `path`.

    Raises:
      WeightsError: the file is damaged, or describes a model that nanoserve does not compute.
    """
    return spec_from_header(read_header(path))


def spec_from_header(header: Header) -> ModelSpec:
    """As `spec_from_gguf`, for a header that has been read."""
    keys = _ModelKeys(header)
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    kv_heads = keys.count("attention.head_count_kv", heads)
    head_size = keys.count("attention.key_length", max(hidden // heads, 1))
    rotated = keys.count("rope.dimension_count", head_size)
    if heads % kv_heads or head_size % 2 or rotated != head_size:
        raise WeightsError(
            f"{header.path}: {heads} heads over {kv_heads} KV heads of size {head_size}, {rotated} of it rotated, "
            "is not a shape that nanoserve computes. Choose another model"
        )
    theta = keys.positive("rope.freq_base", 10000.0)
    return ModelSpec(
        name="-".join(header.get("general.name", str, header.path.stem).lower().split()),
        family=keys.family,
        layers=keys.count("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        ffn=keys.count("feed_forward_length"),
        vocab=_embedding(header).shape[0],
        max_context_tokens=keys.count("context_length"),
        rope_theta=theta,
        rope_scaling=_rope_scaling(header, keys, theta, head_size),
        tied_embeddings="output.weight" not in header.tensors,
        norm_eps=keys.positive("attention.layer_norm_rms_epsilon"),
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in header.tensors,
        sliding_window_tokens=keys.optional_count("attention.sliding_window"),
        source=f"metadata of {header.path.name}",
        **(_gemma_3(keys, head_size) if keys.family == "gemma3" else {}),
    )


def _gemma_3(keys: "_ModelKeys", head_size: int) -> dict[str, Any]:
    """What Gemma 3 has and others have not, where no key says otherwise.

    The 27B divides scores by another number; its file is refused for its rotary scaling already.

    Source: llama.cpp llama-model.cpp, LLM_ARCH_GEMMA3.
    """
    return {
        "full_attention_every": keys.count("attention.sliding_window_pattern", 6),
        "local_rope_theta": keys.positive("rope.freq_base_swa", 10000.0),
        "query_scalar": float(head_size),
        "scaled_embeddings": True,
        "zero_centred_norms": True,
        "post_norms": True,
        "activation": "gelu_tanh",
    }


class _ModelKeys:
    """The metadata keys that start with the architecture's name; refuses architectures that are not computed."""

    def __init__(self, header: Header):
        self._header = header
        self.family = header.get("general.architecture", str)
        if self.family not in FAMILIES:
            hint = nearest(self.family, FAMILIES)
            raise WeightsError(f"{header.path}: architecture '{self.family}' is not supported.{hint}")
        if header.get("split.count", int, 1) > 1:
            raise WeightsError(f"{header.path}: is one part of a split model. Merge it with `llama-gguf-split --merge`")
        if header.get(f"{self.family}.expert_count", int, 0):
            raise WeightsError(f"{header.path}: is a mixture of experts. Simulate it with the roofline executor")

    def count(self, key: str, default: int | None = None) -> int:
        value = self._header.get(f"{self.family}.{key}", int, default)
        if value < 1:
            raise self._error(key, value, "must be at least 1")
        return value

    def optional_count(self, key: str) -> int | None:
        return self.count(key) if f"{self.family}.{key}" in self._header.metadata else None

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive float, at the seven digits that the file's float32 holds (1e-5, not 9.999999747378752e-06)."""
        value = float(f"{self._header.get(f'{self.family}.{key}', float, default):.7g}")
        if not 0 < value < float("inf"):
            raise self._error(key, value, "must be positive and finite")
        return value

    def rope_scaling_type(self) -> str:
        kind = self._header.get(f"{self.family}.rope.scaling.type", str, "none")
        if kind not in ("none", "llama3"):
            raise self._error("rope.scaling.type", kind, "is not supported")
        return kind

    def _error(self, key: str, value: object, problem: str) -> WeightsError:
        return WeightsError(
            f"{self._header.path}: metadata key '{self.family}.{key}' = {value} {problem}. Convert the model again"
        )


def _embedding(header: Header) -> TensorInfo:
    info = header.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2:
        raise WeightsError(
            f"{header.path}: has no matrix 'token_embd.weight'. Is it a language model? Download it again"
        )
    return info


def _rope_scaling(header: Header, keys: _ModelKeys, theta: float, head_size: int) -> RopeScaling | None:
    """Llama 3's frequency scaling; the file has its result, so the parameters are recovered from that and checked."""
    kind, info = keys.rope_scaling_type(), header.tensors.get(ROPE_FACTORS)
    if info is None and kind == "none":
        return None
    if info is not None and info.shape == (head_size // 2,) and info.kind == GGMLQuantizationType.F32:
        found = np.frombuffer(files.read_at(header.path, info.offset, info.nbytes), "<f4").astype(np.float64)
        # Every Llama 3 uses these three; only the factor differs (8 in Llama 3.1, 32 in the small Llama 3.2).
        scaling = RopeScaling(
            factor=round(float(found.max()), 3) if np.isfinite(found).all() else 0.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_context_tokens=8192,
        )
        if scaling.factor >= 1 and np.allclose(found, _llama3_factors(scaling, theta, head_size), rtol=1e-3):
            return scaling
    raise WeightsError(
        f"{header.path}: its rotary scaling ('{ROPE_FACTORS}') is not Llama 3's. Use the safetensors checkpoint"
    )


def _llama3_factors(scaling: RopeScaling, theta: float, head_size: int) -> np.ndarray:
    """What each rotary frequency is divided by, [h/2] (Hugging Face `_compute_llama3_parameters`)."""
    periods_per_token = theta ** -(np.arange(0, head_size, 2) / head_size) / (2 * np.pi)
    periods = scaling.original_context_tokens * periods_per_token
    smooth = (periods - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0, 1)
    return 1 / ((1 - smooth) / scaling.factor + smooth)
