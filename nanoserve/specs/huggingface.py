"""Reads a Hugging Face `config.json` into a `ModelSpec`.

Invariants: the file is data from outside, so every value is checked before it is used and anything wrong is a
`WeightsError` that names the file and the key; an absent key means what `transformers` takes it to mean; what would
change the computation and is not supported (other rotary scalings, partial rotary, extra biases, windows on some
layers only) is refused rather than ignored. Rotary settings are read in both forms: `rope_theta` with `rope_scaling`
(transformers 4) and `rope_parameters` (transformers 5).
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from nanoserve.specs.errors import WeightsError, nearest
from nanoserve.specs.models import Activation, ModelSpec, MoeSpec, RopeScaling

# Real files have 1-5 kB; the bounds keep a hostile one from filling memory or overflowing a float.
MAX_CONFIG_BYTES = 2**20
MAX_INTEGER = 2**31 - 1

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
    fields = Fields(_load_json(file), where=str(file))
    family = _family(fields)
    heads = fields.integer("num_attention_heads")
    fields.refuse("attention_bias", "mlp_bias")
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
        tied_embeddings=fields.boolean("tie_word_embeddings", default=False),
        norm_eps=fields.number("rms_norm_eps"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window_tokens=family.window(fields),
        activation=_activation(fields),
        moe=family.moe(fields),
        source=str(file),
    )


@dataclasses.dataclass(frozen=True)
class Fields:
    """A JSON object from outside, read key by key with checks. JSON's null is an absent key, as in `transformers`.

    Attributes:
      values: the object.
      where: the file, and the path of keys within it.
    """

    values: Mapping[str, Any]
    where: str

    def fail(self, message: str) -> NoReturn:
        """Raises a `WeightsError` that says where."""
        raise WeightsError(f"{self.where}: {message}.")

    def missing(self, key: str) -> NoReturn:
        """Raises a `WeightsError` about an absent key."""
        self.fail(f"the key {key!r} is missing; the config.json of a transformers checkpoint has it")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 to `MAX_INTEGER`."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_INTEGER:
            self.fail(f"{key} must be a whole number from 1 to {MAX_INTEGER}, not {_shown(value)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self._value(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e300:
            self.fail(f"{key} must be a positive finite number, not {_shown(value)}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.fail(f"{key} must be true or false, not {_shown(value)}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            self.fail(f"{key} must be a string, not {_shown(value)}")
        return value

    def child(self, key: str) -> "Fields | None":
        """A nested object, or None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(f"{key} must be an object, not {_shown(value)}")
        return Fields(value, where=f"{self.where}: {key}") if value else None

    def refuse(self, *keys: str) -> None:
        """Fails when one of these switches is on: no decoder here computes what it asks for."""
        for key in keys:
            if self.boolean(key, default=False):
                self.fail(f"{key} = true is not supported; only checkpoints without it can be read")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            self.missing(key)
        return default if value is None else value


def _shown(value: Any) -> str:
    """A value from outside, short enough for a message."""
    return repr(value)[:60]


def _load_json(file: pathlib.Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise WeightsError(
            f"{file}: cannot be read ({error.strerror}). Give the folder that config.json is in."
        ) from error
    if not data or len(data) > MAX_CONFIG_BYTES:
        size = "empty" if not data else f"larger than {MAX_CONFIG_BYTES} bytes"
        raise WeightsError(f"{file}: the file is {size}. Download it again.")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: not valid JSON ({error}). Download it again.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{file}: must hold a JSON object, not {_shown(values)}.")
    return values


# What differs between the families. An absent key takes the default of transformers 5.23.0,
# models/<family>/configuration_<family>.py.


def _no_moe(_: Fields) -> MoeSpec | None:
    return None


def _mixtral_moe(fields: Fields) -> MoeSpec:
    experts = fields.integer("num_local_experts", default=8)
    top_k = fields.integer("num_experts_per_tok", default=2)
    if top_k > experts:
        fields.fail(f"num_experts_per_tok = {top_k} is more than num_local_experts = {experts}")
    return MoeSpec(experts=experts, top_k=top_k, ffn=fields.integer("intermediate_size"))


def _no_window(_: Fields) -> int | None:
    return None


def _stated_window(fields: Fields) -> int | None:
    """Null and absent alike mean full attention (Mixtral, Phi-3)."""
    return None if fields.values.get("sliding_window") is None else fields.integer("sliding_window")


def _mistral_window(fields: Fields) -> int | None:
    """Null means full attention (v0.2 and later); absent means the 4,096 of v0.1."""
    return 4096 if "sliding_window" not in fields.values else _stated_window(fields)


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
    kinds = fields.values.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            fields.fail(f"layer_types must list {layers} layers, not {_shown(kinds)}")
        return kinds.count("sliding_attention")
    first = fields.values.get("max_window_layers", 28)
    return layers if first == 0 else max(0, layers - fields.integer("max_window_layers", default=28))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    """What one `model_type` fixes beyond its config file, and how it states its window and experts."""

    name: str
    window: Callable[[Fields], int | None] = _no_window
    moe: Callable[[Fields], MoeSpec | None] = _no_moe
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 10000.0
    head_size: int | None = None
    kv_heads_required: bool = True


def _by_name(families: Iterable[_Family]) -> Mapping[str, _Family]:
    return {family.name: family for family in families}


_FAMILIES = _by_name(
    (
        _Family(name="llama", kv_heads_required=False),
        _Family(name="mistral", window=_mistral_window),
        _Family(name="mixtral", window=_stated_window, moe=_mixtral_moe, rope_theta=1e6),
        _Family(name="phi3", window=_stated_window, kv_heads_required=False),
        _Family(name="qwen2", window=_qwen_window, qkv_bias=True),
        _Family(name="qwen3", window=_qwen_window, qk_norm=True, head_size=128),
    )
)


def _family(fields: Fields) -> _Family:
    name = fields.text("model_type")
    if name not in _FAMILIES:
        fields.fail(f"model_type {_shown(name)} is not supported.{nearest(name[:60], _FAMILIES)}".rstrip("."))
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


def _activation(fields: Fields) -> Activation:
    name = fields.text("hidden_act", default="silu")
    if name not in _ACTIVATIONS:
        fields.fail(f"hidden_act {_shown(name)} is not supported.{nearest(name[:60], _ACTIVATIONS)}".rstrip("."))
    return _ACTIVATIONS[name]


def _rope_fields(fields: Fields) -> Fields | None:
    """The object with rotary settings: `rope_scaling` where both are given, as in transformers 5."""
    return fields.child("rope_scaling") or fields.child("rope_parameters")


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
        rope.fail(f"rope_type {_shown(kind)} is not supported; 'default' and 'llama3' are")
    return RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_context_tokens=rope.integer("original_max_position_embeddings"),
    )
