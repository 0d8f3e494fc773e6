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
    """Every tensor of a checkpoint, matrices in [out, in] orientation; raises as `tensors`."""
    return {name: np.ascontiguousarray(array) for name, array in tensors(spec, params)}


def tensors(spec: ModelSpec, params: Params) -> Iterator[tuple[str, Array]]:
    """Names and arrays of `to_tensors`, made one at a time where the weights are: no second model is held.

    Raises:
      ConfigError: the model has experts, biases or norms that are not exported, or quantised weights.
    """
    extras = {"experts": spec.moe, "biases": spec.qkv_bias, "q/k norms": spec.qk_norm, "norms after": spec.post_norms}
    present = [name for name, value in extras.items() if value]
    if present:
        raise ConfigError(f"model '{spec.name}' cannot be exported: it has {', '.join(present)}")
    yield names.EMBEDDING, params.embed
    yield names.FINAL_NORM, params.final_norm
    if params.lm_head is not None:
        yield names.HEAD, params.lm_head.T
    for index in range(spec.layers):
        for name, array in _layer(spec, params.layers, index):
            yield f"model.layers.{index}.{name}", array


def _layer(spec: ModelSpec, layers: Layer, index: int) -> Iterator[tuple[str, Array]]:
    K, G, h, D = spec.kv_heads, spec.query_groups, spec.head_size, spec.hidden
    qkv = _matrix(layers.wqkv, index).reshape(D, K, G + 2, h).transpose(1, 2, 3, 0)
    for name, rows in (("q", qkv[:, :G]), ("k", qkv[:, G]), ("v", qkv[:, G + 1])):
        yield f"self_attn.{name}_proj.weight", rows.reshape(-1, D)
    gate_up = _matrix(layers.w_gate_up, index)
    yield "self_attn.o_proj.weight", _matrix(layers.wo, index).T
    yield "mlp.gate_proj.weight", gate_up[:, : spec.ffn].T
    yield "mlp.up_proj.weight", gate_up[:, spec.ffn :].T
    yield "mlp.down_proj.weight", _matrix(layers.w_down, index).T
    yield "input_layernorm.weight", layers.attn_norm[index]
    yield "post_attention_layernorm.weight", layers.mlp_norm[index]


def _matrix(stack: Array | QuantMatrix, index: int) -> Array:
    if isinstance(stack, QuantMatrix):
        raise ConfigError("quantised weights cannot be exported: load the model without quantisation")
    return stack[index]
