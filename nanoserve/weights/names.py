"""The names and shapes of a model's tensors, as Hugging Face has them for dense llama-style models.

Those are llama, qwen2, qwen3, mistral and phi3. Matrices are [out, in]. A tied model has no `lm_head.weight`. Phi-3's
fused matrices appear here already split.
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
      WeightsError: the model is not a dense llama-style one.
    """
    if spec.moe or spec.biases or spec.rope_theta is None:
        kind = "a mixture of experts" if spec.moe else f"of family '{spec.family}'"
        raise WeightsError(
            f"model '{spec.name}' is {kind}, and weights are known for dense llama-style models only. "
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
    D, F, q, kv = spec.hidden, spec.ffn, spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (D,)}
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        shapes[f"self_attn.{name}_proj.weight"] = (rows, D)
        if spec.qkv_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
    if spec.qk_norm:
        shapes |= {f"self_attn.{name}_norm.weight": (spec.head_size,) for name in "qk"}
    shapes |= {"self_attn.o_proj.weight": (D, q), "post_attention_layernorm.weight": (D,)}
    if spec.gated_mlp:
        shapes["mlp.gate_proj.weight"] = (F, D)
    return shapes | {"mlp.up_proj.weight": (F, D), "mlp.down_proj.weight": (D, F)}


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
