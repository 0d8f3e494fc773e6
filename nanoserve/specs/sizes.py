"""What a model's shape amounts to: parameters, weight bytes, KV bytes per token.

Invariants: pure functions of a `ModelSpec` (and dtypes by name); counts are exact integers; nothing depends on a chip,
a batch, or how the model is split over chips. `nanoserve.roofline` builds on these for time and memory.
"""

import dataclasses
import math

from nanoserve.specs.chips import BYTES_PER_ELEMENT, Precision
from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.specs.models import ModelSpec

QUANTISED_DTYPES = frozenset({"fp8", "int8", "int4", "fp4"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters by part; `_per_layer` parts are of one layer, the others of the whole model.

    Attributes:
      embedding: the token table, V D. positions: learned positions (GPT-3), else 0.
      head: the output matrix, D V; 0 when it is the embedding table.
      attention_per_layer: the q, k, v and o matrices.
      mlp_per_layer: the feed-forward matrices, all experts and shared experts together.
      router_per_layer: the matrix that chooses experts, else 0.
      vectors_per_layer: norm weights and biases.
      final_norm: the norm before the head.
      total: every parameter. active: those that one token meets, i.e. `top_k` of the experts.
    """

    embedding: int
    positions: int
    head: int
    attention_per_layer: int
    mlp_per_layer: int
    router_per_layer: int
    vectors_per_layer: int
    final_norm: int
    total: int
    active: int


def parameter_counts(spec: ModelSpec) -> ParameterCounts:
    """Returns how many parameters each part of the model has.

    Source: the tensors of the published checkpoints; the totals agree with the published sizes (tests).
    """
    attention = _attention_matrices(spec)
    mlp = _mlp_matrices(spec)
    router = spec.hidden * spec.moe.experts if spec.moe else 0
    vectors = _layer_vectors(spec)
    embedding = spec.vocab * spec.hidden
    positions = spec.max_context_tokens * spec.hidden if spec.rope_theta is None else 0
    head = 0 if spec.tied_embeddings else embedding
    final_norm = _norm(spec)
    total = embedding + positions + head + final_norm + spec.layers * (attention + mlp + router + vectors)
    idle_experts = spec.moe.experts - spec.moe.top_k if spec.moe else 0
    return ParameterCounts(
        embedding=embedding,
        positions=positions,
        head=head,
        attention_per_layer=attention,
        mlp_per_layer=mlp,
        router_per_layer=router,
        vectors_per_layer=vectors,
        final_norm=final_norm,
        total=total,
        active=total - spec.layers * idle_experts * expert_parameters(spec),
    )


def matrix_parameters_per_layer(spec: ModelSpec) -> int:
    """Returns the parameters of one layer that quantisation shrinks: attention and feed-forward, all experts.

    The router is not among them: a wrong choice of expert costs more than its few bytes.
    """
    return _attention_matrices(spec) + _mlp_matrices(spec)


def expert_parameters(spec: ModelSpec) -> int:
    """Returns the parameters of one expert's matrices; of the whole feed-forward in a dense model."""
    ffn = spec.moe.ffn if spec.moe else spec.ffn
    return _mlp_matrix_count(spec) * spec.hidden * ffn


def kv_bytes_per_token(spec: ModelSpec, kv_dtype: str = "bf16") -> int:
    """Returns the bytes that the keys and values of one token take in all layers, without quantisation scales.

    A sliding window does not lower it: it bounds how many tokens are held, not what one takes.

    Args:
      spec: the model.
      kv_dtype: a key of `BYTES_PER_ELEMENT`, e.g. `bf16`, `fp8`.

    Raises:
      ConfigError: unknown dtype.
    """
    return _bytes(2 * spec.layers * spec.kv_heads * spec.head_size, kv_dtype)


def weight_bytes(spec: ModelSpec, precision: Precision) -> int:
    """Returns the bytes of all weights as stored, over all chips together.

    Quantised matrices (fp8, int8, int4, fp4) leave the rest of the model as it was: embedding, positions, head, router,
    norms and biases stay in `precision.activations`. That is what published quantised checkpoints do. Scales are not
    counted: one per output channel is below 0.1%; int4 in groups of 128 with a bf16 scale would add 3%.

    Raises:
      ConfigError: unknown dtype.
    """
    matrices = spec.layers * matrix_parameters_per_layer(spec)
    rest = parameter_counts(spec).total - matrices
    rest_dtype = precision.activations if precision.weights in QUANTISED_DTYPES else precision.weights
    return _bytes(matrices, precision.weights) + _bytes(rest, rest_dtype)


def _attention_matrices(spec: ModelSpec) -> int:
    query_and_output = 2 * spec.hidden * spec.heads * spec.head_size
    key_and_value = 2 * spec.hidden * spec.kv_heads * spec.head_size
    return query_and_output + key_and_value


def _mlp_matrices(spec: ModelSpec) -> int:
    copies = spec.moe.experts + spec.moe.shared if spec.moe else 1
    return copies * expert_parameters(spec)


def _mlp_matrix_count(spec: ModelSpec) -> int:
    """Gate, up and down; or up and down."""
    return 3 if spec.gated_mlp else 2


def _norm(spec: ModelSpec) -> int:
    """RMSNorm has a scale; LayerNorm, which comes with `biases`, a shift too."""
    return (2 if spec.biases else 1) * spec.hidden


def _layer_vectors(spec: ModelSpec) -> int:
    norms = 2 * _norm(spec) + (2 * spec.head_size if spec.qk_norm else 0)
    qkv_bias = (spec.heads + 2 * spec.kv_heads) * spec.head_size if spec.qkv_bias or spec.biases else 0
    # o and down give D; up gives F, and so does gate.
    other_biases = 2 * spec.hidden + (_mlp_matrix_count(spec) - 1) * spec.ffn if spec.biases else 0
    return norms + qkv_bias + other_biases


def _bytes(elements: int, dtype: str) -> int:
    if dtype not in BYTES_PER_ELEMENT:
        raise ConfigError(f"dtype {dtype!r} is not known.{nearest(dtype, BYTES_PER_ELEMENT)}")
    return math.ceil(elements * BYTES_PER_ELEMENT[dtype])
