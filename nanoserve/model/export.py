"""A model's weights back under Hugging Face names: the inverse of `params.from_tensors`, on one chip.

Dense models of the Llama line only; what they cannot have is refused by name. Next: `nanoserve.weights.write`.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Array

from nanoserve.model.params import Layer, Params
from nanoserve.model.quantised import QuantMatrix
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec
from nanoserve.weights import names


def to_tensors(spec: ModelSpec, params: Params) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, matrices in [out, in] orientation.

    Raises:
      ConfigError: the model has experts, biases or norms that are not exported, or quantised weights.
    """
    extras = {"experts": spec.moe, "biases": spec.qkv_bias, "q/k norms": spec.qk_norm, "norms after": spec.post_norms}
    present = [name for name, value in extras.items() if value]
    if present:
        raise ConfigError(f"model '{spec.name}' cannot be exported: it has {', '.join(present)}")
    tensors = {names.EMBEDDING: np.asarray(params.embed), names.FINAL_NORM: np.asarray(params.final_norm)}
    if params.lm_head is not None:
        tensors[names.HEAD] = np.asarray(params.lm_head).T
    for index in range(spec.layers):
        tensors |= {f"model.layers.{index}.{name}": array for name, array in _layer(spec, params.layers, index)}
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _layer(spec: ModelSpec, layers: Layer, index: int) -> Iterator[tuple[str, np.ndarray]]:
    K, G, h, D = spec.kv_heads, spec.query_groups, spec.head_size, spec.hidden
    qkv = _matrix(layers.wqkv, index).reshape(D, K, G + 2, h).transpose(1, 2, 3, 0)
    for name, rows in (("q", qkv[:, :G]), ("k", qkv[:, G]), ("v", qkv[:, G + 1])):
        yield f"self_attn.{name}_proj.weight", rows.reshape(-1, D)
    gate_up = _matrix(layers.w_gate_up, index)
    yield "self_attn.o_proj.weight", _matrix(layers.wo, index).T
    yield "mlp.gate_proj.weight", gate_up[:, : spec.ffn].T
    yield "mlp.up_proj.weight", gate_up[:, spec.ffn :].T
    yield "mlp.down_proj.weight", _matrix(layers.w_down, index).T
    yield "input_layernorm.weight", np.asarray(layers.attn_norm[index])
    yield "post_attention_layernorm.weight", np.asarray(layers.mlp_norm[index])


def _matrix(stack: Array | QuantMatrix, index: int) -> np.ndarray:
    if isinstance(stack, QuantMatrix):
        raise ConfigError("quantised weights cannot be exported: load the model without quantisation")
    return np.asarray(stack[index])
