"""The matrices of a model and the shape of its attention, as one chip of a tensor-parallel group holds them.

Invariants: exact integers; nothing here depends on a step. Each `Matrix` says in how many layers it stands, so a model
whose first layers are dense and whose others have experts is a list like any other.

**Latent attention** (DeepSeek) keeps one latent a token for all heads. Prefill expands it to keys and values of every
head (`kv_b`), those of the past again for every chunk; decode never expands: its queries are taken through `kv_b`
into the latent's space and the result out of it ("absorbed"), which is the same product a token, while scores and
values then are as wide as the latent.

Next: `ops`.
"""

import dataclasses
import math

from nanoserve.roofline.counts import Count
from nanoserve.specs.models import MlaSpec, ModelSpec, full_attention_layers


@dataclasses.dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix as one chip holds it, in every layer that has it.

    Attributes:
      name: of the operation. rows, columns: k and n of the product. layers: that have it, in the whole model.
      passes: times each token goes through a matrix of this shape (`top_k` for routed experts).
      experts: copies to choose from, of the whole model; 0 when every token uses the one matrix.
      quantised: stored in `Precision.weights` even if that is fp8 or smaller.
    """

    name: str
    rows: int
    columns: int
    layers: int
    passes: int = 1
    experts: int = 0
    quantised: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionShape:
    """What attention of one layer computes and moves on one chip.

    Attributes:
      decode_flops, prefill_flops: per query-key pair, of all the chip's heads.
      decode_values, prefill_values: elements per token that go in (queries) and come out.
      expansion_flops: per KV position of the past that a chunk reads; 0 where keys and values are kept ready for use.
      kv_heads: that the chip reads one by one; of latent attention, 1.
    """

    decode_flops: int
    prefill_flops: int
    decode_values: int
    prefill_values: int
    expansion_flops: int
    kv_heads: int


def layer_matrices(model: ModelSpec, ways: int = 1, expert_ways: int | None = None) -> tuple[Matrix, ...]:
    """Returns the matrices that one of `ways` tensor-parallel chips holds.

    Of each routed expert a chip has one of `expert_ways` parts, or of `ways` where that is None.

    KV heads fewer than `ways` are replicated, so their part of `qkv` stops shrinking; so are the matrices that make
    latents.
    """
    attention = _latent_matrices(model, model.mla, ways) if model.mla else _head_matrices(model, ways)
    moe = model.moe
    if moe is None:
        return (*attention, *_feed_forward(model, "", math.ceil(model.ffn / ways), model.layers))
    routed, width = model.layers - moe.dense_layers, math.ceil(moe.ffn / (expert_ways or ways))
    experts = (
        dataclasses.replace(matrix, passes=moe.top_k, experts=moe.experts)
        for matrix in _feed_forward(model, "experts_", width, routed)
    )
    return (
        *attention,
        *_feed_forward(model, "", math.ceil(model.ffn / ways), moe.dense_layers),
        Matrix("router", model.hidden, moe.experts, routed, quantised=False),
        *experts,
        *_feed_forward(model, "shared_", math.ceil(moe.shared * moe.ffn / ways), routed),
    )


def attention_shape(model: ModelSpec, ways: int = 1) -> AttentionShape:
    """Returns what attention costs on one of `ways` tensor-parallel chips."""
    heads, mla = math.ceil(model.heads / ways), model.mla
    if mla is None:
        width = heads * model.head_size
        kv_heads = math.ceil(model.kv_heads / ways)
        return AttentionShape(4 * width, 4 * width, 2 * width, 2 * width, 0, kv_heads)
    latent, expanded = 2 * mla.kv_rank + mla.rope_size, mla.nope_size + mla.rope_size + mla.value_size
    expansion = 2 * mla.kv_rank * heads * (mla.nope_size + mla.value_size)
    return AttentionShape(2 * heads * latent, 2 * heads * expanded, heads * latent, heads * expanded, expansion, 1)


def matmul_flops(model: ModelSpec, tokens: Count, sampled: Count) -> Count:
    """Returns the FLOPs of all matrix products over the whole model: 2 m n k each, attention excluded.

    Args:
      tokens: tokens through the layers. sampled: rows through the output head.
    """
    per_token = sum(2 * m.rows * m.columns * m.passes * m.layers for m in layer_matrices(model))
    return per_token * tokens + 2 * model.hidden * model.vocab * sampled


def attention_flops(model: ModelSpec, pairs: Count, window_pairs: Count | None = None) -> Count:
    """Returns the FLOPs of attention over the whole model: q k and p v, 2 each per query-key pair, head and element.

    Of latent attention, those of expanded heads: what a decode kernel computes besides, to spare reading, is no use
    to anyone.

    Args:
      pairs: query-key pairs of a layer. window_pairs: of a layer with a sliding window, if they differ.
    """
    full = full_attention_layers(model)
    in_windows = (model.layers - full) * (pairs if window_pairs is None else window_pairs)
    return attention_shape(model).prefill_flops * (full * pairs + in_windows)


def _head_matrices(model: ModelSpec, ways: int) -> tuple[Matrix, ...]:
    heads, kv_heads = math.ceil(model.heads / ways), math.ceil(model.kv_heads / ways)
    return (
        Matrix("qkv", model.hidden, (heads + 2 * kv_heads) * model.head_size, model.layers),
        Matrix("o", heads * model.head_size, model.hidden, model.layers),
    )


def _latent_matrices(model: ModelSpec, mla: MlaSpec, ways: int) -> tuple[Matrix, ...]:
    """Latents of query and KV in one product, the query's expansion, the KV's, and the output."""
    heads = math.ceil(model.heads / ways)
    queries = heads * (mla.nope_size + mla.rope_size)
    latents = mla.q_rank + mla.kv_rank + mla.rope_size
    return (
        Matrix("qkv_a", model.hidden, latents, model.layers),
        Matrix("q_b", mla.q_rank or model.hidden, queries, model.layers),
        Matrix("kv_b", mla.kv_rank, heads * (mla.nope_size + mla.value_size), model.layers),
        Matrix("o", heads * mla.value_size, model.hidden, model.layers),
    )


def _feed_forward(model: ModelSpec, prefix: str, width: int, layers: int) -> tuple[Matrix, ...]:
    """Up, with the gate if there is one, and down; nothing where no layer has it."""
    if not width or not layers:
        return ()
    ups = 2 if model.gated_mlp else 1
    return (
        Matrix(f"{prefix}gate_up", model.hidden, ups * width, layers),
        Matrix(f"{prefix}down", width, model.hidden, layers),
    )
