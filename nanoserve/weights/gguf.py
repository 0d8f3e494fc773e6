"""GGUF checkpoints (llama.cpp's format) of llama, qwen2, qwen3 and gemma3 models as a TensorSource.

Invariants: names, orientation, the order of q and k rows and the centre of norms are Hugging Face's whatever the file
has; F16 and BF16
tensors keep their type, every other type is dequantised to float32 (by the `gguf` package, which llama.cpp publishes).

Source: llama.cpp convert_hf_to_gguf.py as of gguf 0.19 (names, permutation). Next: `gguf_spec`, `gguf_header`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import override

import ml_dtypes
import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.models import ModelSpec
from nanoserve.weights import files, names
from nanoserve.weights.gguf_header import TensorInfo, read_header
from nanoserve.weights.gguf_spec import FAMILIES, ROPE_FACTORS, spec_from_header
from nanoserve.weights.types import TensorSource

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
# Norms that stand elsewhere than in the others.
_LAYER_NAMES_OF = {
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
}
_LAYER_TENSOR = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(\w+)\.(weight|bias)", re.ASCII)


class GgufTensors(TensorSource):
    """The tensors of one GGUF file under their Hugging Face names.

    Args:
      path: a GGUF file; its header is read and checked here, tensor data only by `read`.

    Raises:
      WeightsError: the file is damaged, of another architecture, or lacks tensors that its metadata promises.
    """

    def __init__(self, path: Path):
        self._header = read_header(path)
        self._spec = spec_from_header(self._header)
        for name, info in self._header.tensors.items():
            _check_kind(path, name, info)
        layer_names = _LAYER_NAMES | _LAYER_NAMES_OF.get(self._spec.family, {})
        stored = [name for name in self._header.tensors if name != ROPE_FACTORS]
        self._gguf_names = {_canonical_name(path, name, layer_names): name for name in stored}
        self.description = f"GGUF {path}"
        names.check_tensors(self, self._spec)

    @property
    def spec(self) -> ModelSpec:
        """The model's shape as the metadata states it."""
        return self._spec

    @override
    def names(self) -> frozenset[str]:
        return frozenset(self._gguf_names)

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape

    @override
    def read(self, name: str) -> np.ndarray:
        array = read_tensor(self._header.path, self._info(name))
        if self._spec.family in _INTERLEAVED_FAMILIES:
            if ".q_proj." in name:
                return half_split_rows(array, self._spec.heads)
            if ".k_proj." in name:
                return half_split_rows(array, self._spec.kv_heads)
        if self._spec.zero_centred_norms and name.endswith("norm.weight"):
            return array - 1  # the file has 1 + weight; in float32 that gives the trained bf16 weight back exactly
        return array

    @override
    def fingerprint(self) -> str:
        return files.fingerprint([self._header.path])

    def _info(self, name: str) -> TensorInfo:
        if name not in self._gguf_names:
            raise names.unknown_tensor(self, name)
        return self._header.tensors[self._gguf_names[name]]


def read_tensor(path: Path, info: TensorInfo) -> np.ndarray:
    """Reads one tensor and dequantises it when it is quantised.

    Returns:
      An array of `info.shape`: float32, or float16 / bfloat16 where the file has those.

    Raises:
      WeightsError: the type is not supported, or the file has been cut since its header was read.
    """
    raw = np.frombuffer(files.read_at(path, info.offset, info.nbytes), np.uint8)
    if info.kind in _PLAIN:
        return raw.view(_PLAIN[info.kind]).reshape(info.shape)
    # A scale of inf or nan is the file's business and is passed on without NumPy's warning.
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


def _canonical_name(path: Path, gguf_name: str, layer_names: Mapping[str, str]) -> str:
    if gguf_name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[gguf_name]
    match = _LAYER_TENSOR.fullmatch(gguf_name)
    if match and match[2] in layer_names:
        return f"model.layers.{match[1]}.{layer_names[match[2]]}.{match[3]}"
    raise WeightsError(
        f"{path}: tensor '{gguf_name}' belongs to no model that is computed. Use a dense one of: {', '.join(FAMILIES)}"
    )


def _check_kind(path: Path, name: str, info: TensorInfo) -> None:
    supported = _PLAIN.keys() | _QUANTISED
    if info.kind not in supported:
        raise WeightsError(
            f"{path}: tensor '{name}' has type {info.kind.name}, which is not read. "
            f"Quantise the model to one of: {', '.join(sorted(k.name for k in supported))}"
        )
