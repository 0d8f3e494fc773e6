"""Model shapes as facts, and what follows from them: parameters and KV bytes per token.

`ModelSpec` holds only what a published `config.json` states. Everything derived is a function here or, where it depends
on a step or a chip, in `nanoserve.roofline`. Read `model_registry` for the shipped models and `huggingface` for
`config.json`.
"""

import dataclasses
from typing import Literal

from nanoserve.specs.errors import ConfigError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3 frequency scaling of rotary embeddings (Llama 3.1, section 3.4; `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """Mixture-of-experts feed-forward: `experts` of width `ffn`, `top_k` of them per token, `shared` always on.

    The first `dense_layers` layers have a feed-forward of width `ModelSpec.ffn` instead (DeepSeek). `normalised` says
    that the weights of a token's chosen experts are divided by their sum.
    """

    experts: int
    top_k: int
    ffn: int
    shared: int = 0
    dense_layers: int = 0
    normalised: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlaSpec:
    """Multi-head latent attention: one latent of `kv_rank` and one rotary key of `rope_size` a token, for all heads.

    Attributes:
      q_rank: width of the compressed query; 0 where queries are projected directly (DeepSeek-V2-Lite).
      kv_rank: width of the latent that keys and values are expanded from.
      nope_size, rope_size: parts of a head's query and key without and with rotation. value_size: of a head's value.

    Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.
    """

    q_rank: int
    kv_rank: int
    nope_size: int
    rope_size: int
    value_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The shape of a decoder-only transformer.

    Attributes:
      name: registry name, e.g. `llama-3.1-70b`.
      family: which decoder computes it: llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, phi3, gemma2, gemma3; priced
        only: gpt3, deepseek_v2, deepseek_v3.
      layers, hidden, heads, kv_heads, head_size, ffn, vocab: L, D, H, K, h, F, V.
      max_context_tokens: prompt plus output that positions allow.
      rope_theta: rotary base; None means learned absolute positions (GPT-3).
      tied_embeddings: the output head is the embedding table.
      sliding_window_tokens: attention window of every layer; None means full attention.
      full_attention_every: every how many layers one, the last of them, attends in full (Gemma 2: 2, Gemma 3: 6).
      local_rope_theta: rotary base of layers with a window, where it is another (Gemma 3).
      query_scalar: scores are divided by its square root; None means by that of `head_size`.
      attention_soft_cap, logits_soft_cap: scores, and the head's logits, become `cap * tanh(x / cap)`.
      scaled_embeddings: embeddings are multiplied by the square root of `hidden`.
      zero_centred_norms: the norms' factors are 1 + weight. post_norms: attention and feed-forward end in a norm, too.
      gated_mlp: three feed-forward matrices (SwiGLU) rather than two.
      biases: every projection has a bias and norms are LayerNorm (GPT-3); `qkv_bias` alone is Qwen2.
      moe: experts instead of one feed-forward. mla: latent attention; `kv_heads` and `head_size` are then those of the
        expanded keys, and what is kept of a token is the latent.
      source: where the shape was read.
    """

    name: str
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    max_context_tokens: int
    rope_theta: float | None = 10000.0
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    biases: bool = False
    sliding_window_tokens: int | None = None
    full_attention_every: int | None = None
    local_rope_theta: float | None = None
    query_scalar: float | None = None
    attention_soft_cap: float | None = None
    logits_soft_cap: float | None = None
    scaled_embeddings: bool = False
    zero_centred_norms: bool = False
    post_norms: bool = False
    gated_mlp: bool = True
    activation: Activation = "silu"
    moe: MoeSpec | None = None
    mla: MlaSpec | None = None
    hf_id: str = ""
    source: str = ""

    @property
    def query_groups(self) -> int:
        """G: query heads that share one KV head."""
        return self.heads // self.kv_heads


def layer_windows(spec: ModelSpec) -> tuple[int | None, ...]:
    """Returns the windows that layers of the model have, each once; None is full attention."""
    alternate = spec.sliding_window_tokens is not None and spec.full_attention_every is not None
    return (spec.sliding_window_tokens, None) if alternate else (spec.sliding_window_tokens,)


def full_attention_layers(spec: ModelSpec) -> int:
    """Returns how many layers attend in full; the others have the window."""
    if spec.sliding_window_tokens is None:
        return spec.layers
    return spec.layers // spec.full_attention_every if spec.full_attention_every else 0


def check_draft(target: ModelSpec, draft: ModelSpec) -> None:
    """Checks that one model can guess tokens for another.

    Raises:
      ConfigError: their vocabularies differ in size, so that their token ids mean different things.
    """
    if target.vocab != draft.vocab:
        raise ConfigError(
            f"draft model '{draft.name}' has a vocabulary of {draft.vocab} tokens and '{target.name}' one of "
            f"{target.vocab}: a guess must be a token of the target. Choose a draft model of the same family"
        )
