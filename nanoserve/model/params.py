"""A model's weights as a pytree, and how a checkpoint becomes one.

One table, `AXES`, says which arrays there are and what their axes mean; shapes, shardings and the checkpoint reader all
follow from it. Query, key and value are one matrix, whose columns are for each KV head its G query heads, then its key,
then its value: a step reads them in one product, and tensor parallelism cuts them between KV heads only. All matrices
have two axes: of a product over three, the TPU compiler copied the layer's matrix first, at three times the product.

How columns are ordered depends on the chips that share them (`Ways`): gate and up are one matrix, of which each chip
has its part of the gate and then its part of up; and where there are more chips than KV heads, each has a copy of one.

Layers are stacked along a leading axis and scanned, so that a program's size and compile time do not grow with depth.
Next: `decoder` (how they are used), `sharding` (where they live).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, DTypeLike, Float

from nanoserve.model import quantised
from nanoserve.model.quantised import QuantMatrix, Storage
from nanoserve.specs.errors import ConfigError, WeightsError, nearest
from nanoserve.specs.models import ModelSpec

if TYPE_CHECKING:
    from nanoserve.weights.types import TensorSource

FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma2", "gemma3")

AXES: Mapping[str, tuple[str, ...]] = {
    "embed": ("vocab", "hidden"),
    "attn_norm": ("layers", "hidden"),
    "wqkv": ("layers", "hidden", "qkv"),
    "bqkv": ("layers", "qkv"),
    "q_norm": ("layers", "head_size"),
    "k_norm": ("layers", "head_size"),
    "wo": ("layers", "heads", "hidden"),
    "post_attn_norm": ("layers", "hidden"),
    "mlp_norm": ("layers", "hidden"),
    "w_gate_up": ("layers", "hidden", "gate_up"),
    "w_down": ("layers", "ffn", "hidden"),
    "router": ("layers", "hidden", "choices"),
    "w_experts_gate_up": ("layers", "experts", "hidden", "gate_up"),
    "w_experts_down": ("layers", "experts", "ffn", "hidden"),
    "post_mlp_norm": ("layers", "hidden"),
    "final_norm": ("hidden",),
    "lm_head": ("hidden", "vocab"),
}


class Ways(NamedTuple):
    """How many chips share a layer, which decides how its columns are ordered.

    Attributes:
      heads: share its heads. columns: share the width of its feed-forward, or of each expert: fewer than `heads` where
        the experts are divided, too.
    """

    heads: int = 1
    columns: int = 1


ALONE = Ways()


@struct.dataclass
class Layer:
    """A decoder layer's weights; in `Params` all layers' at once, inside the scan one layer's, without the leading L.

    An array is None in the families that have no such part; of the two kinds of feed-forward, so are the arrays of the
    other one: `w_gate_up` and `w_down` where there are experts, `router` and the experts' matrices where there are not.
    `ways` says which chips the columns are for.
    """

    attn_norm: Float[Array, "L D"]
    wqkv: Float[Array, "L D K*(G+2)*h"] | QuantMatrix
    bqkv: Float[Array, "L K*(G+2)*h"] | None
    q_norm: Float[Array, "L h"] | None
    k_norm: Float[Array, "L h"] | None
    wo: Float[Array, "L K*G*h D"] | QuantMatrix
    post_attn_norm: Float[Array, "L D"] | None
    mlp_norm: Float[Array, "L D"]
    w_gate_up: Float[Array, "L D 2*F"] | QuantMatrix
    w_down: Float[Array, "L F D"] | QuantMatrix
    router: Float[Array, "L D E"]
    w_experts_gate_up: Float[Array, "L E D 2*F"]
    w_experts_down: Float[Array, "L E F D"]
    post_mlp_norm: Float[Array, "L D"] | None
    ways: Ways = struct.field(pytree_node=False, default=ALONE)


LAYER_FIELDS = tuple(field.name for field in dataclasses.fields(Layer) if field.name in AXES)


@struct.dataclass
class Params:
    """All weights of a decoder-only transformer. `lm_head` is None where the head is the embedding table."""

    embed: Float[Array, "V D"]
    layers: Layer
    final_norm: Float[Array, " D"]
    lm_head: Float[Array, "D V"] | None


Place = Callable[[np.ndarray, tuple[str, ...]], Any]  # puts one array, with these logical axes, where it will live
Quantise = Callable[[str, tuple[int, ...], Callable[[int], np.ndarray]], QuantMatrix]
"""(field, its shape [L, D, F], what reads a layer's matrix) -> all layers in fewer bits, where they will live"""


def supports(spec: ModelSpec) -> str | None:
    """Why the decoder cannot compute this model, or None where it can."""
    if spec.family not in FAMILIES:
        return f"family '{spec.family}' has no decoder.{nearest(spec.family, FAMILIES)}"
    reasons = {
        "experts that are always on": spec.moe is not None and spec.moe.shared > 0,
        "dense layers before layers with experts": spec.moe is not None and spec.moe.dense_layers > 0,
        "latent attention": spec.mla is not None,
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
        "gate_up": 2 * feed_forward_width(spec),
        "ffn": feed_forward_width(spec),
        "experts": expert_count(spec),
        "choices": expert_count(spec),
    }
    return tuple(sizes[axis] for axis in AXES[field])


def feed_forward_width(spec: ModelSpec) -> int:
    """F: of the feed-forward, or of each expert."""
    return spec.moe.ffn if spec.moe else spec.ffn


def expert_count(spec: ModelSpec) -> int:
    """E; 0 where every token goes through the one feed-forward."""
    return spec.moe.experts if spec.moe else 0


def spread(spec: ModelSpec, ways: int) -> ModelSpec:
    """The model as `ways` chips execute it: with a KV head for each, copies of the few that it has.

    Raises:
      ConfigError: where query heads or copies cannot be shared evenly.
    """
    if ways <= spec.kv_heads:
        return spec
    if ways % spec.kv_heads or spec.heads % ways:
        raise ConfigError(
            f"model '{spec.name}': {spec.heads} query heads and {spec.kv_heads} KV heads cannot be shared evenly by "
            f"{ways} chips; use a number of chips that divides {spec.kv_heads}, or a multiple of it that divides "
            f"{spec.heads}"
        )
    return dataclasses.replace(spec, kv_heads=ways)


def build(spec: ModelSpec, make: Callable[[str], Any], ways: Ways = ALONE) -> Params:
    """A `Params` whose array of `field` is `make(field)`, made one at a time.

    Args:
      spec: decides which arrays exist.
      make: called with a key of `AXES`.
      ways: the chips that columns are ordered for.

    Raises:
      ConfigError: if no decoder computes the model.
    """
    reason = supports(spec)
    if reason:
        raise ConfigError(f"model '{spec.name}' cannot be executed, only priced: {reason}")

    absent = _absent(spec)

    def maybe(field: str) -> Any:
        return None if field in absent else make(field)

    return Params(
        embed=make("embed"),
        layers=Layer(ways=ways, **{name: maybe(name) for name in LAYER_FIELDS}),
        final_norm=make("final_norm"),
        lm_head=maybe("lm_head"),
    )


def _absent(spec: ModelSpec) -> frozenset[str]:
    """Arrays of `AXES` that the model does not have."""
    parts = {
        ("bqkv",): spec.qkv_bias,
        ("q_norm", "k_norm"): spec.qk_norm,
        ("post_attn_norm", "post_mlp_norm"): spec.post_norms,
        ("w_gate_up", "w_down"): spec.moe is None,
        ("router", "w_experts_gate_up", "w_experts_down"): spec.moe is not None,
        ("lm_head",): not spec.tied_embeddings,
    }
    return frozenset(field for fields, present in parts.items() if not present for field in fields)


def abstract(spec: ModelSpec, dtype: DTypeLike, ways: Ways = ALONE, how: Storage | None = None) -> Params:
    """Shapes without memory, for ahead-of-time compilation by `ways` chips; matrices stored `how`, if it is given."""
    executed = spread(spec, ways.heads)

    def make(field: str):
        shape = shape_of(executed, field)
        if how and field in quantised.MATRICES:
            return quantised.abstract(field, shape, how, ways.columns)
        return jax.ShapeDtypeStruct(shape, dtype)

    return build(executed, make, ways)


def logical_axes(spec: ModelSpec) -> Params:
    """The same pytree with a tuple of axis names for each array."""
    return build(spec, lambda field: AXES[field])


def from_tensors(
    spec: ModelSpec,
    source: "TensorSource",
    dtype: DTypeLike,
    place: Place | None = None,
    ways: Ways = ALONE,
    quantise: Quantise | None = None,
) -> Params:
    """Reads a checkpoint, one array at a time: the host holds at most one kind of matrix of all layers.

    Args:
      spec: the model that the checkpoint should be.
      source: tensors by their Hugging Face names, in [out, in] orientation.
      dtype: of the result.
      place: where each array goes; the default device where None, `sharding.placer(mesh)` for a mesh.
      ways: the chips that share a layer, `sharding.ways_of(mesh)`.
      quantise: makes the matrices of `quantised.MATRICES`, from what the checkpoint holds; None leaves them in `dtype`.

    Raises:
      WeightsError: naming a tensor that is missing or has another shape.
    """
    place = place or (lambda array, _: jnp.asarray(array))
    executed = spread(spec, ways.heads)

    def read(field: str, layer: int | None) -> np.ndarray:
        return _READERS[field](_Tensors(spec, source, layer, ways))

    def make(field: str):
        if quantise and field in quantised.MATRICES:
            return quantise(field, shape_of(executed, field), lambda index: read(field, index))
        array = np.empty(shape_of(executed, field), jnp.dtype(dtype))
        if AXES[field][0] == "layers":
            for index in range(spec.layers):
                array[index] = read(field, index)
        else:
            array[...] = read(field, None)
        return place(array, AXES[field])

    return build(executed, make, ways)


class _Tensors:
    """The tensors of one layer by the last part of their names, checked before they are read."""

    def __init__(self, spec: ModelSpec, source: "TensorSource", layer: int | None, ways: Ways):
        self.spec, self.ways, self._source = spec, ways, source
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
    D = tensors.spec.hidden
    return _qkv_rows(tensors, "weight", D).transpose(3, 0, 1, 2).reshape(D, -1)


def _bqkv(tensors: _Tensors) -> np.ndarray:
    return _qkv_rows(tensors, "bias").reshape(-1)


def _qkv_rows(tensors: _Tensors, kind: str, *inputs: int) -> np.ndarray:
    """Weights or biases [K, G + 2, h, ...] of query, key and value, with a KV head for every chip."""
    spec, executed = tensors.spec, spread(tensors.spec, tensors.ways.heads)
    h, copies = spec.head_size, executed.kv_heads // spec.kv_heads

    def read(name: str, heads: int) -> np.ndarray:
        return tensors.read(f"self_attn.{name}_proj.{kind}", heads * h, *inputs).reshape(heads, 1, h, *inputs)

    q = read("q", spec.heads).reshape(executed.kv_heads, executed.query_groups, h, *inputs)
    k, v = (np.repeat(read(name, spec.kv_heads), copies, axis=0) for name in "kv")
    return np.concatenate([q, k, v], axis=1)


def _w_gate_up(tensors: _Tensors, part: str = "mlp") -> np.ndarray:
    spec, width, ways = tensors.spec, feed_forward_width(tensors.spec), tensors.ways.columns
    gate = tensors.read(f"{part}.gate_proj.weight", width, spec.hidden)
    up = tensors.read(f"{part}.up_proj.weight", width, spec.hidden)
    parts = [matrix.T.reshape(spec.hidden, ways, width // ways) for matrix in (gate, up)]
    return np.stack(parts, axis=2).reshape(spec.hidden, 2 * width)


def _w_down(tensors: _Tensors, part: str = "mlp") -> np.ndarray:
    return tensors.read(f"{part}.down_proj.weight", tensors.spec.hidden, feed_forward_width(tensors.spec)).T


def _of_experts(read: Callable[[_Tensors, str], np.ndarray], tensors: _Tensors) -> np.ndarray:
    """The matrix of every expert, stacked."""
    return np.stack([read(tensors, f"mlp.experts.{expert}") for expert in range(expert_count(tensors.spec))])


def _mlp_norm(tensors: _Tensors) -> np.ndarray:
    """The norm before the feed-forward: where attention has a norm after it, that one has the older name."""
    name = "pre_feedforward_layernorm" if tensors.spec.post_norms else "post_attention_layernorm"
    return tensors.read(f"{name}.weight", tensors.spec.hidden)


_READERS: Mapping[str, Callable[[_Tensors], np.ndarray]] = {
    "embed": lambda t: t.read_global("model.embed_tokens.weight", t.spec.vocab, t.spec.hidden),
    "attn_norm": lambda t: t.read("input_layernorm.weight", t.spec.hidden),
    "wqkv": _wqkv,
    "bqkv": _bqkv,
    "q_norm": lambda t: t.read("self_attn.q_norm.weight", t.spec.head_size),
    "k_norm": lambda t: t.read("self_attn.k_norm.weight", t.spec.head_size),
    "wo": lambda t: t.read("self_attn.o_proj.weight", t.spec.hidden, t.spec.heads * t.spec.head_size).T,
    "post_attn_norm": lambda t: t.read("post_attention_layernorm.weight", t.spec.hidden),
    "mlp_norm": _mlp_norm,
    "w_gate_up": _w_gate_up,
    "w_down": _w_down,
    "router": lambda t: t.read("mlp.gate.weight", expert_count(t.spec), t.spec.hidden).T,
    "w_experts_gate_up": lambda t: _of_experts(_w_gate_up, t),
    "w_experts_down": lambda t: _of_experts(_w_down, t),
    "post_mlp_norm": lambda t: t.read("post_feedforward_layernorm.weight", t.spec.hidden),
    "final_norm": lambda t: t.read_global("model.norm.weight", t.spec.hidden),
    "lm_head": lambda t: t.read_global("lm_head.weight", t.spec.vocab, t.spec.hidden).T,
}
