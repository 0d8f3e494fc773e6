"""The names and shapes of a model's tensors, as Hugging Face has them for llama-style models.

Those are llama, mistral, qwen2, qwen3, phi3, gemma2 and gemma3, and with experts mixtral and qwen3_moe. Matrices are
[out, in]. A tied model has no `lm_head.weight`. Phi-3's fused matrices appear here already split, Mixtral's experts
under the names that Qwen3-MoE has for them.
Next: `random`, which draws every tensor named here, and `gguf`, which maps another spelling to these.
"""

import difflib
from collections.abc import Iterator

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.models import ModelSpec
from nanoserve.weights.types import TensorSource

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

_MAX_COMPARED = 10_000


def tensor_shapes(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields (name, shape) of every tensor that a checkpoint of `spec` holds, first layer first.

    Raises:
      WeightsError: the model is not a llama-style one.
    """
    unlike_llama = spec.biases or spec.rope_theta is None or spec.mla or not spec.gated_mlp
    if unlike_llama or (spec.moe and (spec.moe.shared or spec.moe.dense_layers)):
        raise WeightsError(
            f"model '{spec.name}' is of family '{spec.family}', and weights are known for llama-style models only. "
            "Simulate it with the roofline executor, which needs no weights"
        )
    yield EMBEDDING, (spec.vocab, spec.hidden)
    for layer in range(spec.layers):
        for suffix, shape in _layer_shapes(spec).items():
            yield f"model.layers.{layer}.{suffix}", shape
    yield FINAL_NORM, (spec.hidden,)
    if not spec.tied_embeddings:
        yield HEAD, (spec.vocab, spec.hidden)


def _layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors by the part of the name after `model.layers.{i}.`."""
    D, q, kv = spec.hidden, spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (D,)}
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        shapes[f"self_attn.{name}_proj.weight"] = (rows, D)
        if spec.qkv_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
    if spec.qk_norm:
        shapes |= {f"self_attn.{name}_norm.weight": (spec.head_size,) for name in "qk"}
    shapes["self_attn.o_proj.weight"] = (D, q)
    after_attention = ["post_attention_layernorm"]
    if spec.post_norms:
        after_attention += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes |= {f"{name}.weight": (D,) for name in after_attention}
    if spec.moe is None:
        return shapes | _feed_forward_shapes("mlp", D, spec.ffn)
    shapes["mlp.gate.weight"] = (spec.moe.experts, D)
    for expert in range(spec.moe.experts):
        shapes |= _feed_forward_shapes(f"mlp.experts.{expert}", D, spec.moe.ffn)
    return shapes


def _feed_forward_shapes(part: str, D: int, F: int) -> dict[str, tuple[int, ...]]:
    rows = {"gate": (F, D), "up": (F, D), "down": (D, F)}
    return {f"{part}.{name}_proj.weight": shape for name, shape in rows.items()}


def check_tensors(source: TensorSource, spec: ModelSpec) -> None:
    """Checks that `source` holds every tensor of `spec` in its shape; tensors beyond those are allowed.

    Raises:
      WeightsError: naming the first tensor that is missing or of another shape.
    """
    names = source.names()
    for name, expected in tensor_shapes(spec):
        if name not in names:
            raise WeightsError(
                f"{source.description}: tensor '{name}' of model '{spec.name}' is missing."
                f"{_nearest(name, source)} Name the model these weights belong to, or download them again"
            )
        found = source.shape(name)
        if found != expected:
            raise WeightsError(
                f"{source.description}: tensor '{name}' has shape {list(found)}, but model '{spec.name}' needs "
                f"{list(expected)}. Name the model these weights belong to"
            )


def unknown_tensor(source: TensorSource, name: str) -> WeightsError:
    """The error for a name that `source` does not hold."""
    return WeightsError(f"{source.description}: no tensor '{name}'.{_nearest(name, source)}")


def _nearest(name: str, source: TensorSource) -> str:
    """The closest name alone: `errors.nearest` would list a whole checkpoint when nothing is close."""
    candidates = sorted(source.names())
    # Comparing takes about 10 us a name, and a hostile header holds a million.
    close = difflib.get_close_matches(name, candidates, n=1) if len(candidates) <= _MAX_COMPARED else []
    return f" The nearest is '{close[0]}'." if close else f" There are {len(candidates)} others."
