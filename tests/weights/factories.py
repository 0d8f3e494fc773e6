"""Small checkpoints of known content, written by the libraries that define their formats."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.models import ModelSpec
from nanoserve.weights.names import tensor_shapes

F32 = GGMLQuantizationType.F32
MAX_LAYERS = 4

BYTES = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# GPT-2's printable stand-ins for the 256 bytes, in its order: itself where printable, from U+0100 on elsewhere.
BYTE_TOKENS = [chr(b) for b in BYTES] + [chr(0x100 + i) for i in range(256 - len(BYTES))]
SPECIAL_TOKENS = ["<|start|>", "<|end|>"]
MERGES = ["Ġ t", "h e", "Ġt he"]
TOKENS = [*SPECIAL_TOKENS, *BYTE_TOKENS, "Ġt", "he", "Ġthe"]


def tiny_spec(**changes: Any) -> ModelSpec:
    """Two layers whose every dimension is different, so that a transposed or swapped tensor shows."""
    shape: dict[str, Any] = {
        "name": "tiny",
        "family": "llama",
        "layers": 2,
        "hidden": 64,
        "heads": 6,
        "kv_heads": 2,
        "head_size": 16,
        "ffn": 160,
        "vocab": len(TOKENS),
        "max_context_tokens": 128,
    }
    return ModelSpec(**{**shape, **changes})


def random_tensors(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of `spec` in float32 under its Hugging Face name, with norms that are not 1."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in tensor_shapes(spec)}


def metadata_of(spec: ModelSpec) -> dict[str, Any]:
    """The keys that llama.cpp's converter writes for `spec`."""
    family = spec.family
    return {
        f"{family}.block_count": spec.layers,
        f"{family}.context_length": spec.max_context_tokens,
        f"{family}.embedding_length": spec.hidden,
        f"{family}.feed_forward_length": spec.ffn,
        f"{family}.attention.head_count": spec.heads,
        f"{family}.attention.head_count_kv": spec.kv_heads,
        f"{family}.attention.key_length": spec.head_size,
        f"{family}.attention.layer_norm_rms_epsilon": spec.norm_eps,
        f"{family}.rope.freq_base": spec.rope_theta,
        "general.name": spec.name,
    }


def tokenizer_metadata(pre: str = "smollm") -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(TOKENS) - 2),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def write_gguf(
    path: Path,
    family: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kinds: Mapping[str, GGMLQuantizationType] | None = None,
) -> Path:
    """Writes a GGUF file; tensors with an entry in `kinds` are raw bytes of that type, rows along the last axis."""
    writer = gguf.GGUFWriter(path, family)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        adders.get(type(value), writer.add_array)(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array, raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str, family: str = "llama") -> str:
    """llama.cpp's name of a tensor with a Hugging Face name, from the converter's own table."""
    arch = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[family]
    mapped = gguf.get_tensor_name_map(arch, MAX_LAYERS).get_name(name, try_suffixes=(".weight", ".bias"))
    assert mapped, name
    return mapped


def write_model(path: Path, spec: ModelSpec, tensors: Mapping[str, np.ndarray], **metadata: Any) -> Path:
    """Writes `tensors` (row order as given) as a GGUF file of `spec` with a small tokenizer."""
    stored = {gguf_name(name, spec.family): array for name, array in tensors.items()}
    return write_gguf(path, spec.family, metadata_of(spec) | tokenizer_metadata() | metadata, stored)


def mutate(data: bytes, edits: Sequence[tuple[int, int]], keep: int) -> bytes:
    """`data` with bytes replaced (position modulo length, value), then cut to its first `keep` bytes."""
    damaged = bytearray(data)
    for position, value in edits:
        damaged[position % len(damaged)] = value
    return bytes(damaged[:keep])


def only_weights_errors(consume: Callable[[Path], object], path: Path) -> None:
    """Calls `consume(path)` and lets it fail only with a WeightsError that names the file."""
    message = str(path)
    try:
        consume(path)
    except WeightsError as error:
        message = str(error)
    assert str(path) in message
