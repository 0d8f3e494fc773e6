"""A model's weights as a pytree, and how a checkpoint becomes one.

One table, `AXES`, says which arrays there are and what their axes mean; shapes, shardings and the checkpoint reader all
follow from it. Query, key and value are one matrix, whose columns are for each KV head its G query heads, then its key,
then its value: a step reads them in one product, and tensor parallelism cuts them between KV heads only. All matrices
have two axes: of a product over three, the TPU compiler copied the layer's matrix first, at three times the product.

Layers are stacked along a leading axis and scanned, so that a program's size and compile time do not grow with depth.
Next: `decoder` (how they are used), `sharding` (where they live).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, DTypeLike, Float

from nanoserve.specs.errors import ConfigError, WeightsError, nearest
from nanoserve.specs.models import ModelSpec

if TYPE_CHECKING:
    from nanoserve.weights.types import TensorSource

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")

AXES: Mapping[str, tuple[str, ...]] = {
    "embed": ("vocab", "hidden"),
    "attn_norm": ("layers", "hidden"),
    "wqkv": ("layers", "hidden", "qkv"),
    "bqkv": ("layers", "qkv"),
    "q_norm": ("layers", "head_size"),
    "k_norm": ("layers", "head_size"),
    "wo": ("layers", "heads", "hidden"),
    "mlp_norm": ("layers", "hidden"),
    "w_gate_up": ("layers", "gate_up", "hidden", "ffn"),
    "w_down": ("layers", "ffn", "hidden"),
    "final_norm": ("hidden",),
    "lm_head": ("hidden", "vocab"),
}


@struct.dataclass
class Layer:
    """A decoder layer's weights; in `Params` all layers' at once, inside the scan one layer's, without the leading L.

    Biases and query/key norms are None in the families that have none.
    """

    attn_norm: Float[Array, "L D"]
    wqkv: Float[Array, "L D K*(G+2)*h"]
    bqkv: Float[Array, "L K*(G+2)*h"] | None
    q_norm: Float[Array, "L h"] | None
    k_norm: Float[Array, "L h"] | None
    wo: Float[Array, "L K*G*h D"]
    mlp_norm: Float[Array, "L D"]
    w_gate_up: Float[Array, "L 2 D F"]
    w_down: Float[Array, "L F D"]


@struct.dataclass
class Params:
    """All weights of a decoder-only transformer. `lm_head` is None where the head is the embedding table."""

    embed: Float[Array, "V D"]
    layers: Layer
    final_norm: Float[Array, " D"]
    lm_head: Float[Array, "D V"] | None


Place = Callable[[np.ndarray, tuple[str, ...]], Any]  # puts one array, with these logical axes, where it will live


def supports(spec: ModelSpec) -> str | None:
    """Why the decoder cannot compute this model, or None where it can."""
    if spec.family not in FAMILIES:
        return f"family '{spec.family}' has no decoder.{nearest(spec.family, FAMILIES)}"
    reasons = {
        "mixture-of-experts layers": spec.moe is not None,
        "LayerNorm and biases everywhere": spec.biases,
        "learned absolute positions": spec.rope_theta is None,
        "a feed-forward without gate": not spec.gated_mlp,
    }
    missing = [reason for reason, present in reasons.items() if present]
    return f"the decoder has no {', no '.join(missing)}" if missing else None


def shape_of(spec: ModelSpec, field: str) -> tuple[int, ...]:
    """Shape of one array of `AXES`."""
    sizes = {
        "layers": spec.layers,
        "vocab": spec.vocab,
        "hidden": spec.hidden,
        "qkv": spec.kv_heads * (spec.query_groups + 2) * spec.head_size,
        "heads": spec.heads * spec.head_size,
        "head_size": spec.head_size,
        "gate_up": 2,
        "ffn": spec.ffn,
    }
    return tuple(sizes[axis] for axis in AXES[field])


def build(spec: ModelSpec, make: Callable[[str], Any]) -> Params:
    """A `Params` whose array of `field` is `make(field)`, made one at a time.

    Args:
      spec: decides which arrays exist.
      make: called with a key of `AXES`.

    Raises:
      ConfigError: if no decoder computes the model.
    """
    reason = supports(spec)
    if reason:
        raise ConfigError(f"model '{spec.name}' cannot be executed, only priced: {reason}")

    absent = {
        "bqkv": not spec.qkv_bias,
        "q_norm": not spec.qk_norm,
        "k_norm": not spec.qk_norm,
        "lm_head": spec.tied_embeddings,
    }

    def maybe(field: str) -> Any:
        return None if absent.get(field) else make(field)

    return Params(
        embed=make("embed"),
        layers=Layer(**{field.name: maybe(field.name) for field in dataclasses.fields(Layer)}),
        final_norm=make("final_norm"),
        lm_head=maybe("lm_head"),
    )


def abstract(spec: ModelSpec, dtype: DTypeLike) -> Params:
    """Shapes without memory, for ahead-of-time compilation."""
    return build(spec, lambda field: jax.ShapeDtypeStruct(shape_of(spec, field), dtype))


def logical_axes(spec: ModelSpec) -> Params:
    """The same pytree with a tuple of axis names for each array."""
    return build(spec, lambda field: AXES[field])


def from_tensors(spec: ModelSpec, source: "TensorSource", dtype: DTypeLike, place: Place | None = None) -> Params:
    """Reads a checkpoint, one array at a time: the host holds at most one kind of matrix of all layers.

    Args:
      spec: the model that the checkpoint should be.
      source: tensors by their Hugging Face names, in [out, in] orientation.
      dtype: of the result.
      place: where each array goes; the default device where None, `sharding.placer(mesh)` for a mesh.

    Raises:
      WeightsError: naming a tensor that is missing or has another shape.
    """
    place = place or (lambda array, _: jnp.asarray(array))

    def make(field: str):
        array = np.empty(shape_of(spec, field), jnp.dtype(dtype))
        if AXES[field][0] == "layers":
            for index in range(spec.layers):
                array[index] = _READERS[field](_Tensors(spec, source, index))
        else:
            array[...] = _READERS[field](_Tensors(spec, source, None))
        return place(array, AXES[field])

    return build(spec, make)


class _Tensors:
    """The tensors of one layer by the last part of their names, checked before they are read."""

    def __init__(self, spec: ModelSpec, source: "TensorSource", layer: int | None):
        self.spec, self._source = spec, source
        self._prefix = f"model.layers.{layer}."

    def read(self, name: str, *shape: int) -> np.ndarray:
        """The tensor `model.layers.<layer>.<name>`, of this shape."""
        return self.read_global(self._prefix + name, *shape)

    def read_global(self, name: str, *shape: int) -> np.ndarray:
        """The tensor `name`, of this shape."""
        source, wanted = self._source, f"model '{self.spec.name}' wants it with shape {list(shape)}"
        if name not in source.names():
            hint = nearest(name, source.names())
            raise WeightsError(f"{source.description}: there is no tensor '{name}'; {wanted}.{hint}")
        found = tuple(source.shape(name))
        if found != shape:
            raise WeightsError(
                f"{source.description}: tensor '{name}' has shape {list(found)}; {wanted}. "
                f"Is it a checkpoint of another model, or the config of another checkpoint?"
            )
        return source.read(name)


def _wqkv(tensors: _Tensors) -> np.ndarray:
    spec = tensors.spec
    rows, h, D = spec.kv_heads, spec.head_size, spec.hidden
    q = tensors.read("self_attn.q_proj.weight", spec.heads * h, D).reshape(rows, spec.query_groups, h, D)
    k = tensors.read("self_attn.k_proj.weight", rows * h, D).reshape(rows, 1, h, D)
    v = tensors.read("self_attn.v_proj.weight", rows * h, D).reshape(rows, 1, h, D)
    return np.concatenate([q, k, v], axis=1).transpose(3, 0, 1, 2).reshape(D, -1)


def _bqkv(tensors: _Tensors) -> np.ndarray:
    spec = tensors.spec
    rows, h = spec.kv_heads, spec.head_size
    q = tensors.read("self_attn.q_proj.bias", spec.heads * h).reshape(rows, spec.query_groups, h)
    k = tensors.read("self_attn.k_proj.bias", rows * h).reshape(rows, 1, h)
    v = tensors.read("self_attn.v_proj.bias", rows * h).reshape(rows, 1, h)
    return np.concatenate([q, k, v], axis=1).reshape(-1)


def _w_gate_up(tensors: _Tensors) -> np.ndarray:
    spec = tensors.spec
    gate = tensors.read("mlp.gate_proj.weight", spec.ffn, spec.hidden)
    up = tensors.read("mlp.up_proj.weight", spec.ffn, spec.hidden)
    return np.stack([gate.T, up.T])


_READERS: Mapping[str, Callable[[_Tensors], np.ndarray]] = {
    "embed": lambda t: t.read_global("model.embed_tokens.weight", t.spec.vocab, t.spec.hidden),
    "attn_norm": lambda t: t.read("input_layernorm.weight", t.spec.hidden),
    "wqkv": _wqkv,
    "bqkv": _bqkv,
    "q_norm": lambda t: t.read("self_attn.q_norm.weight", t.spec.head_size),
    "k_norm": lambda t: t.read("self_attn.k_norm.weight", t.spec.head_size),
    "wo": lambda t: t.read("self_attn.o_proj.weight", t.spec.hidden, t.spec.heads * t.spec.head_size).T,
    "mlp_norm": lambda t: t.read("post_attention_layernorm.weight", t.spec.hidden),
    "w_gate_up": _w_gate_up,
    "w_down": lambda t: t.read("mlp.down_proj.weight", t.spec.hidden, t.spec.ffn).T,
    "final_norm": lambda t: t.read_global("model.norm.weight", t.spec.hidden),
    "lm_head": lambda t: t.read_global("lm_head.weight", t.spec.vocab, t.spec.hidden).T,
}
