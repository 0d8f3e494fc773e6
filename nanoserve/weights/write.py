"""Writes a checkpoint that `open` and `specs.huggingface` read: a folder with `model.safetensors` and `config.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.models import ModelSpec, RopeScaling
from nanoserve.weights.safetensors import SINGLE


def write_checkpoint(folder: Path, spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a model of the family `llama`.

    Args:
      folder: where; made if it is not there. spec: the shape. tensors: under Hugging Face names.

    Raises:
      WeightsError: another family, or the folder cannot be written.
    """
    config = huggingface_config(spec)
    from safetensors.numpy import save_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(dict(tensors), folder / SINGLE)
    except OSError as error:
        raise WeightsError(f"{folder}: {error.strerror}. Name a folder that can be written") from error


def huggingface_config(spec: ModelSpec) -> dict[str, Any]:
    """What `config.json` says of a model, as `transformers.LlamaConfig` and `specs.huggingface` take it.

    Args:
      spec: of the family `llama`. Rotary settings have the form that transformers 4 writes and 5 still reads.

    Raises:
      WeightsError: another family.
    """
    if spec.family != "llama":
        raise WeightsError(f"model '{spec.name}': only the family 'llama' is written, this is '{spec.family}'")
    config = {
        "model_type": "llama",
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.hidden,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "intermediate_size": spec.ffn,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_context_tokens,
        "rope_theta": spec.rope_theta,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied_embeddings,
    }
    return config | ({"rope_scaling": _rope_scaling(spec.rope_scaling)} if spec.rope_scaling else {})


def _rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context_tokens,
    }
