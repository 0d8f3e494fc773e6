"""What a model's shape amounts to: parameters, weight bytes, KV bytes per token.

Invariants: pure functions of a `ModelSpec` (and dtypes by name); counts are exact integers; nothing depends on a chip,
a batch, or how the model is split over chips. `nanoserve.roofline` builds on these for time and memory.
"""

import dataclasses
import math

from nanoserve.specs.chips import BYTES_PER_ELEMENT, SCALE_BYTES_PER_ELEMENT, Precision
from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.specs.models import MlaSpec, ModelSpec

QUANTISED_DTYPES = frozenset({"fp8", "int8", "int4", "fp4"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters by part; `_per_layer` parts are of one layer, the others of the whole model.

    Attributes:
      embedding: the token table, V D. positions: learned positions (GPT-3), else 0.
      head: the output matrix, D V; 0 when it is the embedding table.
      attention_per_layer: the q, k, v and o matrices, or those of latent attention.
      mlp_per_layer: the feed-forward matrices, all experts and shared experts together.
      router_per_layer: the matrix that chooses experts, else 0.
      dense_mlp_per_layer: the feed-forward matrices of each of the first `MoeSpec.dense_layers` layers, which have them
        instead of experts and router; else 0.
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
    dense_mlp_per_layer: int
    vectors_per_layer: int
    final_norm: int
    total: int
    active: int


def parameter_counts(spec: ModelSpec) -> ParameterCounts:
    """Returns how many parameters each part of the model has.

    Source: the tensors of the published checkpoints; the totals agree with the published sizes (tests).
    """
    attention, mlp, vectors = _attention_matrices(spec), _mlp_matrices(spec), _layer_vectors(spec)
    router = spec.hidden * spec.moe.experts if spec.moe else 0
    dense_layers = spec.moe.dense_layers if spec.moe else 0
    dense_mlp = _mlp_matrix_count(spec) * spec.hidden * spec.ffn if dense_layers else 0
    embedding = spec.vocab * spec.hidden
    positions = spec.max_context_tokens * spec.hidden if spec.rope_theta is None else 0
    head = 0 if spec.tied_embeddings else embedding
    final_norm = _norm(spec)
    layers = spec.layers * (attention + vectors) + dense_layers * dense_mlp
    layers += (spec.layers - dense_layers) * (mlp + router)
    total = embedding + positions + head + final_norm + layers
    idle_experts = spec.moe.experts - spec.moe.top_k if spec.moe else 0
    return ParameterCounts(
        embedding=embedding,
        positions=positions,
        head=head,
        attention_per_layer=attention,
        mlp_per_layer=mlp,
        router_per_layer=router,
        dense_mlp_per_layer=dense_mlp,
        vectors_per_layer=vectors,
        final_norm=final_norm,
        total=total,
        active=total - (spec.layers - dense_layers) * idle_experts * expert_parameters(spec),
    )


def matrix_parameters(spec: ModelSpec) -> int:
    """Returns the parameters that quantisation shrinks: attention and feed-forward of all layers, all experts.

    The router is not among them: a wrong choice of expert costs more than its few bytes.
    """
    counts = parameter_counts(spec)
    dense_layers = spec.moe.dense_layers if spec.moe else 0
    feed_forward = (spec.layers - dense_layers) * counts.mlp_per_layer + dense_layers * counts.dense_mlp_per_layer
    return spec.layers * counts.attention_per_layer + feed_forward


def expert_parameters(spec: ModelSpec) -> int:
    """Returns the parameters of one expert's matrices; of the whole feed-forward in a dense model."""
    ffn = spec.moe.ffn if spec.moe else spec.ffn
    return _mlp_matrix_count(spec) * spec.hidden * ffn


def kv_bytes_per_token(spec: ModelSpec, kv_dtype: str = "bf16") -> int:
    """Returns the bytes that the keys and values of one token take in all layers, without quantisation scales.

    Of latent attention, the latent and its rotary key: keys and values are expanded from them. A sliding window does
    not lower it: it bounds how many tokens are held, not what one takes.

    Args:
      spec: the model.
      kv_dtype: a key of `BYTES_PER_ELEMENT`, e.g. `bf16`, `fp8`.

    Raises:
      ConfigError: unknown dtype.
    """
    kept = spec.mla.kv_rank + spec.mla.rope_size if spec.mla else 2 * spec.kv_heads * spec.head_size
    return _bytes(spec.layers * kept, kv_dtype)


def stored_bytes(elements: int, dtype: str) -> float:
    """Returns the bytes of a matrix's elements as stored, their scales included.

    Args:
      elements: of the matrix. dtype: a key of `BYTES_PER_ELEMENT`.

    Raises:
      ConfigError: unknown dtype.
    """
    if dtype not in BYTES_PER_ELEMENT:
        raise ConfigError(f"dtype {dtype!r} is not known.{nearest(dtype, BYTES_PER_ELEMENT)}")
    return elements * (BYTES_PER_ELEMENT[dtype] + SCALE_BYTES_PER_ELEMENT.get(dtype, 0))


def weight_bytes(spec: ModelSpec, precision: Precision) -> int:
    """Returns the bytes of all weights as stored, over all chips together.

    Quantised matrices (fp8, int8, int4, fp4) leave the rest of the model as it was: embedding, positions, head, router,
    norms and biases stay in `precision.activations`. That is what published quantised checkpoints do. The scales of
    4-bit groups are counted; one per output channel or per block of 128 x 128 is below 0.1% and is not.

    Raises:
      ConfigError: unknown dtype.
    """
    matrices = matrix_parameters(spec)
    rest = parameter_counts(spec).total - matrices
    rest_dtype = precision.activations if precision.weights in QUANTISED_DTYPES else precision.weights
    return math.ceil(stored_bytes(matrices, precision.weights)) + _bytes(rest, rest_dtype)


def _attention_matrices(spec: ModelSpec) -> int:
    if spec.mla:
        return _latent_matrices(spec, spec.mla)
    query_and_output = 2 * spec.hidden * spec.heads * spec.head_size
    key_and_value = 2 * spec.hidden * spec.kv_heads * spec.head_size
    return query_and_output + key_and_value


def _latent_matrices(spec: ModelSpec, mla: MlaSpec) -> int:
    """Queries through their own latent, if any; the latent with its rotary key; its expansion; the output."""
    queries = spec.heads * (mla.nope_size + mla.rope_size)
    query = mla.q_rank * (spec.hidden + queries) if mla.q_rank else spec.hidden * queries
    latent = spec.hidden * (mla.kv_rank + mla.rope_size)
    expansion = mla.kv_rank * spec.heads * (mla.nope_size + mla.value_size)
    return query + latent + expansion + spec.heads * mla.value_size * spec.hidden


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
    norms = (4 if spec.post_norms else 2) * _norm(spec) + (2 * spec.head_size if spec.qk_norm else 0)
    norms += spec.mla.q_rank + spec.mla.kv_rank if spec.mla else 0
    qkv_bias = (spec.heads + 2 * spec.kv_heads) * spec.head_size if spec.qkv_bias or spec.biases else 0
    # o and down give D; up gives F, and so does gate.
    other_biases = 2 * spec.hidden + (_mlp_matrix_count(spec) - 1) * spec.ffn if spec.biases else 0
    return norms + qkv_bias + other_biases


def _bytes(elements: int, dtype: str) -> int:
    if dtype not in BYTES_PER_ELEMENT:
        raise ConfigError(f"dtype {dtype!r} is not known.{nearest(dtype, BYTES_PER_ELEMENT)}")
    return math.ceil(elements * BYTES_PER_ELEMENT[dtype])
