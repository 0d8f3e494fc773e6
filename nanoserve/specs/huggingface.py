"""Reads a Hugging Face `config.json` into a `ModelSpec`.

Invariants: anything wrong is a `WeightsError` that names the file and the key (`config_json`); an absent key means what
`transformers` takes it to mean; what would change the computation and is not supported (other rotary scalings, partial
rotary, extra biases, windows in another pattern than every n-th layer without) is refused rather than ignored. Rotary
settings are read in both forms: `rope_theta` with `rope_scaling` (transformers 4) and `rope_parameters` (transformers
5).
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from nanoserve.specs.config_json import Fields, load_json, shown
from nanoserve.specs.errors import nearest
from nanoserve.specs.models import Activation, ModelSpec, MoeSpec, RopeScaling

_WINDOWED, _FULL = "sliding_attention", "full_attention"  # in `layer_types`

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def read_config(path: str | pathlib.Path) -> ModelSpec:
    """Returns the shape of the model that a Hugging Face folder holds.

    Args:
      path: the folder, or its `config.json`.

    Returns:
      The shape, named after the folder.

    Raises:
      WeightsError: the file is missing, empty, too large, not JSON, lacks a key, has a value that makes no sense, or
        describes a model that nanoserve does not compute.
    """
    path = pathlib.Path(path)
    file = path / "config.json" if path.is_dir() else path
    fields = Fields(load_json(file), where=str(file))
    family = _family(fields)
    heads = fields.integer("num_attention_heads")
    fields.refuse("attention_bias", "mlp_bias", "use_bidirectional_attention")
    return ModelSpec(
        name=file.absolute().parent.name,
        family=family.name,
        layers=fields.integer("num_hidden_layers"),
        hidden=fields.integer("hidden_size"),
        heads=heads,
        kv_heads=_kv_heads(fields, heads, family),
        head_size=_head_size(fields, heads, family),
        ffn=fields.integer("intermediate_size"),
        vocab=fields.integer("vocab_size"),
        max_context_tokens=fields.integer("max_position_embeddings"),
        rope_theta=_rope_theta(fields, family),
        rope_scaling=_rope_scaling(fields),
        tied_embeddings=fields.boolean("tie_word_embeddings", default=family.gemma is not None),
        norm_eps=fields.number("rms_norm_eps"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window_tokens=family.window(fields),
        activation=_activation(fields, family),
        moe=family.moe(fields),
        source=str(file),
        **(family.gemma(fields) if family.gemma else {}),
    )


# What differs between the families. An absent key takes the default of transformers 5.23.0,
# models/<family>/configuration_<family>.py.


def _no_moe(_: Fields) -> MoeSpec | None:
    return None


def _mixtral_moe(fields: Fields) -> MoeSpec:
    experts = fields.integer("num_local_experts", default=8)
    return MoeSpec(experts=experts, top_k=_top_k(fields, experts, 2), ffn=fields.integer("intermediate_size"))


def _qwen_moe(fields: Fields) -> MoeSpec:
    """The number of experts has Mixtral's name in what transformers 5 saves."""
    experts = fields.integer("num_experts", default=fields.integer("num_local_experts", default=128))
    if fields.integer("decoder_sparse_step", default=1) != 1 or fields.values.get("mlp_only_layers"):
        fields.fail("some layers have no experts (decoder_sparse_step, mlp_only_layers); only all or none is supported")
    return MoeSpec(
        experts=experts,
        top_k=_top_k(fields, experts, 8),
        ffn=fields.integer("moe_intermediate_size", default=768),
        normalised=fields.boolean("norm_topk_prob", default=False),
    )


def _top_k(fields: Fields, experts: int, default: int) -> int:
    top_k = fields.integer("num_experts_per_tok", default=default)
    if top_k > experts:
        fields.fail(f"num_experts_per_tok = {top_k} is more than the {experts} experts there are")
    return top_k


def _no_window(_: Fields) -> int | None:
    return None


def _stated_window(fields: Fields) -> int | None:
    """Null and absent alike mean full attention (Mixtral, Phi-3)."""
    return None if fields.values.get("sliding_window") is None else fields.integer("sliding_window")


def _window_or_4096(fields: Fields) -> int | None:
    """Null means full attention (Mistral v0.2 and later); absent means the 4,096 of Mistral v0.1 and Gemma."""
    return 4096 if "sliding_window" not in fields.values else _stated_window(fields)


def _qwen_moe_window(fields: Fields) -> int | None:
    """Of every layer, whatever `max_window_layers` says."""
    used = fields.boolean("use_sliding_window", default=False)
    return fields.integer("sliding_window", default=4096) if used else None


def _qwen_window(fields: Fields) -> int | None:
    """`sliding_window` counts only when `use_sliding_window`, and then for the layers from `max_window_layers` on."""
    if not fields.boolean("use_sliding_window", default=False):
        return None
    layers = fields.integer("num_hidden_layers")
    windowed = _windowed_layers(fields, layers)
    if windowed not in (0, layers):
        fields.fail(f"{windowed} of {layers} layers have a sliding window; only all or none is supported")
    return fields.integer("sliding_window", default=4096) if windowed else None


def _windowed_layers(fields: Fields, layers: int) -> int:
    kinds = _layer_types(fields, layers)
    if kinds is not None:
        return kinds.count(_WINDOWED)
    first = fields.values.get("max_window_layers", 28)
    return layers if first == 0 else max(0, layers - fields.integer("max_window_layers", default=28))


def _layer_types(fields: Fields, layers: int) -> list | None:
    kinds = fields.values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        fields.fail(f"layer_types must list {layers} layers, not {shown(kinds)}")
    return kinds


def _full_attention_every(fields: Fields, default: int) -> int | None:
    """Every how many layers one attends in full, from the list of layers where there is one; None where none does."""
    layers = fields.integer("num_hidden_layers")
    kinds = _layer_types(fields, layers)
    if kinds is None:
        every = fields.integer("sliding_window_pattern", default=default)
        return every if every <= layers else None
    every = kinds.index(_FULL) + 1 if _FULL in kinds else None
    if any(kind != (_WINDOWED if every is None or (i + 1) % every else _FULL) for i, kind in enumerate(kinds)):
        fields.fail(
            f"layer_types {shown(kinds)} is no pattern in which every n-th layer has {_FULL} and others {_WINDOWED}"
        )
    return every


def _gemma_2(fields: Fields) -> dict[str, Any]:
    """What Gemma 2 and 3 have and others have not; caps are those of Gemma 2 where they are absent."""
    every = _full_attention_every(fields, default=2)
    return _gemma(fields, every, attention_soft_cap=50.0, logits_soft_cap=30.0)


def _gemma_3(fields: Fields) -> dict[str, Any]:
    every = _full_attention_every(fields, default=6)
    return _gemma(fields, every) | {"local_rope_theta": _local_rope_theta(fields)}


def _gemma(
    fields: Fields,
    every: int | None,
    attention_soft_cap: float | None = None,
    logits_soft_cap: float | None = None,
) -> dict[str, Any]:
    return {
        "full_attention_every": every if _window_or_4096(fields) else None,
        "query_scalar": fields.number("query_pre_attn_scalar", default=256.0),
        "attention_soft_cap": _soft_cap(fields, "attn_logit_softcapping", attention_soft_cap),
        "logits_soft_cap": _soft_cap(fields, "final_logit_softcapping", logits_soft_cap),
        "scaled_embeddings": True,
        "zero_centred_norms": True,
        "post_norms": True,
    }


def _soft_cap(fields: Fields, key: str, default: float | None) -> float | None:
    """Null means no cap; absent means the family's."""
    if fields.values.get(key, default) is None:
        return None
    return fields.number(key, default=default)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    """What one `model_type` fixes beyond its config file, and how it states its window and experts."""

    name: str
    window: Callable[[Fields], int | None] = _no_window
    moe: Callable[[Fields], MoeSpec | None] = _no_moe
    gemma: Callable[[Fields], dict[str, Any]] | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 10000.0
    head_size: int | None = None
    kv_heads_required: bool = True


_FAMILIES: Mapping[str, _Family] = {  # by `model_type`
    "llama": _Family(name="llama", kv_heads_required=False),
    "mistral": _Family(name="mistral", window=_window_or_4096),
    "mixtral": _Family(name="mixtral", window=_stated_window, moe=_mixtral_moe, rope_theta=1e6),
    "phi3": _Family(name="phi3", window=_stated_window, kv_heads_required=False),
    "qwen2": _Family(name="qwen2", window=_qwen_window, qkv_bias=True),
    "qwen3": _Family(name="qwen3", window=_qwen_window, qk_norm=True, head_size=128),
    "qwen3_moe": _Family(name="qwen3_moe", window=_qwen_moe_window, moe=_qwen_moe, qk_norm=True),
    "gemma2": _Family(name="gemma2", window=_window_or_4096, gemma=_gemma_2, head_size=256),
    "gemma3_text": _Family(
        name="gemma3", window=_window_or_4096, gemma=_gemma_3, qk_norm=True, head_size=256, rope_theta=1e6
    ),
}


def _family(fields: Fields) -> _Family:
    name = fields.text("model_type")
    if name not in _FAMILIES:
        fields.fail(f"model_type {shown(name)} is not supported.{nearest(name[:60], _FAMILIES)}".rstrip("."))
    return _FAMILIES[name]


def _kv_heads(fields: Fields, heads: int, family: _Family) -> int:
    """Null means one per query head; so does absent in Llama and Phi-3; elsewhere absent means a size's default."""
    if family.kv_heads_required and "num_key_value_heads" not in fields.values:
        fields.missing("num_key_value_heads")
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        fields.fail(f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}")
    return kv_heads


def _head_size(fields: Fields, heads: int, family: _Family) -> int:
    if fields.values.get("head_dim") is not None or family.head_size is not None:
        return fields.integer("head_dim", default=family.head_size)
    hidden = fields.integer("hidden_size")
    if hidden % heads:
        fields.fail(
            f"hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}, and head_dim is absent"
        )
    return hidden // heads


def _activation(fields: Fields, family: _Family) -> Activation:
    key, default = ("hidden_activation", "gelu_pytorch_tanh") if family.gemma else ("hidden_act", "silu")
    name = fields.text(key, default=default)
    if name not in _ACTIVATIONS:
        fields.fail(f"{key} {shown(name)} is not supported.{nearest(name[:60], _ACTIVATIONS)}".rstrip("."))
    return _ACTIVATIONS[name]


def _rope_fields(fields: Fields) -> Fields | None:
    """The object with rotary settings: `rope_scaling` where both are given, as in transformers 5.

    Where layers with a window have settings of their own, those of the others.
    """
    rope = fields.child("rope_scaling") or fields.child("rope_parameters")
    return rope and (rope.child("full_attention") or rope)


def _local_rope_theta(fields: Fields) -> float:
    """Of layers with a window; absent, the 10,000 of Gemma 3."""
    default = fields.number("rope_local_base_freq", default=10000.0)
    rope = fields.child("rope_parameters")
    local = rope and rope.child("sliding_attention")
    if not local:
        return default
    if local.text("rope_type", default="default") != "default":
        local.fail("rope_type of layers with a window must be 'default'")
    return local.number("rope_theta", default=default)


def _rope_theta(fields: Fields, family: _Family) -> float:
    rope = _rope_fields(fields)
    for holder in filter(None, (rope, fields)):
        if holder.values.get("rope_theta") is not None:
            return holder.number("rope_theta")
    return family.rope_theta


def _rope_scaling(fields: Fields) -> RopeScaling | None:
    rope = _rope_fields(fields)
    for holder in filter(None, (rope, fields)):
        if holder.number("partial_rotary_factor", default=1.0) != 1.0:
            holder.fail("partial_rotary_factor other than 1 is not supported")
    if rope is None:
        return None
    kind = rope.text("rope_type", default=rope.text("type", default="default"))
    if kind == "default":
        return None
    if kind != "llama3":
        rope.fail(f"rope_type {shown(kind)} is not supported; 'default' and 'llama3' are")
    return RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_context_tokens=rope.integer("original_max_position_embeddings"),
    )
