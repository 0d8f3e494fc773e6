"""Model shapes as facts, and what follows from them: parameters and KV bytes per token.

`ModelSpec` holds only what a published `config.json` states. Everything derived is a function here or, where it depends
on a step or a chip, in `nanoserve.roofline`. Read `model_registry` for the shipped models and `huggingface` for
`config.json`.
"""

import dataclasses
from typing import Literal

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
    """Mixture-of-experts feed-forward: `experts` of width `ffn`, `top_k` of them per token, `shared` always on."""

    experts: int
    top_k: int
    ffn: int
    shared: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The shape of a decoder-only transformer.

    Attributes:
      name: registry name, e.g. `llama-3.1-70b`.
      family: which decoder computes it: llama, qwen2, qwen3, mistral, mixtral, phi3, gpt3.
      layers, hidden, heads, kv_heads, head_size, ffn, vocab: L, D, H, K, h, F, V.
      max_context_tokens: prompt plus output that positions allow.
      rope_theta: rotary base; None means learned absolute positions (GPT-3).
      tied_embeddings: the output head is the embedding table.
      sliding_window_tokens: attention window of every layer; None means full attention.
      gated_mlp: three feed-forward matrices (SwiGLU) rather than two.
      biases: every projection has a bias and norms are LayerNorm (GPT-3); `qkv_bias` alone is Qwen2.
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
    gated_mlp: bool = True
    activation: Activation = "silu"
    moe: MoeSpec | None = None
    hf_id: str = ""
    source: str = ""

    @property
    def query_groups(self) -> int:
        """G: query heads that share one KV head."""
        return self.heads // self.kv_heads
