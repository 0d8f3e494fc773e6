"""What a step computes and moves, operation class by operation class.

`step_ops` turns a model, a mesh, dtypes and a plan's `StepCounts` into a tuple of `Op`. Invariants: everything is
summed over all layers and all steps of the plan, **per chip** (the busiest one: a chip of a tensor-parallel group holds
`ceil(n / ways)` heads, columns or vocabulary rows); FLOPs of integer counts are exact Python integers; the same code
takes integers, NumPy arrays (one entry a plan) and JAX values under a trace (with 64-bit types on: FLOPs overflow
int32).

Matrices are read from HBM once per device step. Routed experts are read as often as they are chosen at least once,
under uniform routing. Activations are counted where any program has to move them, at the inputs and outputs of matrix
products and attention; what separate element-wise kernels move besides is `unfused_bytes`, which a fused program does
not move.

Next: `timing` (seconds), `pricing` (ticks), `records` (columns of a run).
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

from nanoserve.roofline.counts import Count, StepCounts
from nanoserve.specs.chips import BYTES_PER_ELEMENT, ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.specs.models import ModelSpec
from nanoserve.specs.sizes import QUANTISED_DTYPES, kv_bytes_per_token, parameter_counts

OpKind = Literal["matmul", "attention_decode", "attention_prefill", "collective", "elementwise", "host"]

ELEMENTWISE_PER_LAYER = 4  # norm, rotation and KV write, norm, gated activation
_LOGIT_BYTES = 4  # logits are sampled from in float32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation class of a plan: totals over layers and steps, of one chip.

    Attributes:
      name: `qkv`, `o`, `gate_up`, `down`, `head`, ... kind: which rule of `timing` prices it.
      compute: operand dtype, which picks the peak. flops: 2 per multiply-add.
      weight_bytes, kv_read_bytes, kv_write_bytes, activation_bytes: HBM traffic that any program has.
      unfused_bytes: further HBM traffic if element-wise operations are kernels of their own.
      link_bytes: bytes the chip sends (a ring's count: 2 (n-1)/n of an all-reduced message, (n-1)/n of a gathered one).
      launches: kernels. reuse_tokens: for prefill attention, 2 x pairs / KV positions read: the chunk's length when it
        has no past, up to twice that when it has; its efficiency depends on it.
    """

    name: str
    kind: OpKind
    compute: str = "bf16"
    flops: Count = 0
    weight_bytes: Count = 0
    kv_read_bytes: Count = 0
    kv_write_bytes: Count = 0
    activation_bytes: Count = 0
    unfused_bytes: Count = 0
    link_bytes: Count = 0
    launches: Count = 0
    reuse_tokens: Count = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Totals:
    """Sums over operations: FLOPs of matrix products and of attention, and bytes by kind."""

    matmul_flops: Count
    attention_flops: Count
    weight_bytes: Count
    kv_read_bytes: Count
    kv_write_bytes: Count
    activation_bytes: Count
    link_bytes: Count


@dataclasses.dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of one layer, as one chip holds it.

    Attributes:
      name: of the operation. rows, columns: k and n of the product. passes: times each token goes through a matrix of
        this shape (`top_k` for routed experts). experts: copies to choose from; 0 when every token uses the one matrix.
      quantised: stored in `Precision.weights` even if that is fp8 or smaller.
    """

    name: str
    rows: int
    columns: int
    passes: int = 1
    experts: int = 0
    quantised: bool = True


def layer_matrices(model: ModelSpec, ways: int = 1) -> tuple[Matrix, ...]:
    """Returns the matrices of one layer that one of `ways` tensor-parallel chips holds.

    KV heads fewer than `ways` are replicated, so their part of `qkv` stops shrinking.
    """
    width, size = model.hidden, model.head_size
    heads, kv_heads = math.ceil(model.heads / ways), math.ceil(model.kv_heads / ways)
    ups = 2 if model.gated_mlp else 1
    attention = (Matrix("qkv", width, (heads + 2 * kv_heads) * size), Matrix("o", heads * size, width))
    moe = model.moe
    if moe is None:
        ffn = math.ceil(model.ffn / ways)
        return (*attention, Matrix("gate_up", width, ups * ffn), Matrix("down", ffn, width))
    ffn, shared = math.ceil(moe.ffn / ways), math.ceil(moe.shared * moe.ffn / ways)
    routed = (
        Matrix("router", width, moe.experts, quantised=False),
        Matrix("experts_gate_up", width, ups * ffn, passes=moe.top_k, experts=moe.experts),
        Matrix("experts_down", ffn, width, passes=moe.top_k, experts=moe.experts),
    )
    always = (Matrix("shared_gate_up", width, ups * shared), Matrix("shared_down", shared, width)) if shared else ()
    return (*attention, *routed, *always)


def matmul_flops(model: ModelSpec, tokens: Count, sampled: Count) -> Count:
    """Returns the FLOPs of all matrix products over the whole model: 2 m n k each, attention excluded.

    Args:
      tokens: tokens through the layers. sampled: rows through the output head.
    """
    per_token = sum(2 * m.rows * m.columns * m.passes for m in layer_matrices(model))
    return model.layers * per_token * tokens + 2 * model.hidden * model.vocab * sampled


def attention_flops(model: ModelSpec, pairs: Count) -> Count:
    """Returns the FLOPs of attention over the whole model: q k and p v, 2 each per query-key pair, head and element.

    Args:
      pairs: query-key pairs, of one layer.
    """
    return 4 * model.layers * model.heads * model.head_size * pairs


def expected_experts(experts: int, top_k: int, tokens: Count) -> Count:
    """Returns how many experts `tokens` tokens choose at least once, if each picks `top_k` evenly.

    A real router is uneven and reads fewer; this is the upper end for its mean.
    """
    return experts * (1 - (1 - top_k / experts) ** tokens)


def step_ops(model: ModelSpec, cluster: ClusterSpec, precision: Precision, counts: StepCounts) -> tuple[Op, ...]:
    """Returns the operations of a plan.

    Args:
      model, cluster, precision: what runs, where, in which dtypes.
      counts: the plan (integers) or many plans (arrays).

    Raises:
      ConfigError: unknown dtype, or a mesh axis other than `tensor`.
    """
    ways = tensor_ways(cluster)
    parts = _Parts(model, precision, counts, ways)
    ops = (
        parts.embed(),
        parts.decode_attention(),
        parts.prefill_attention(),
        *(parts.matmul(matrix) for matrix in layer_matrices(model, ways)),
        parts.elementwise(),
        parts.head(),
        parts.sample(),
        Op(name="host", kind="host", launches=counts.steps),
    )
    return ops if ways == 1 else (*ops, parts.all_reduce(), parts.gather_logits())


def prefill_attention(model: ModelSpec, cluster: ClusterSpec, precision: Precision, counts: StepCounts) -> Op:
    """Returns that one of `step_ops`: the only one whose time depends on more than how many tokens there are."""
    return _Parts(model, precision, counts, tensor_ways(cluster)).prefill_attention()


def totals(ops: Iterable[Op]) -> Totals:
    """Returns the sums over operations; of one chip, as the operations are. `unfused_bytes` are not in them."""
    ops = tuple(ops)
    return Totals(
        matmul_flops=sum(op.flops for op in ops if op.kind == "matmul"),
        attention_flops=sum(op.flops for op in ops if op.kind in ("attention_decode", "attention_prefill")),
        weight_bytes=sum(op.weight_bytes for op in ops),
        kv_read_bytes=sum(op.kv_read_bytes for op in ops),
        kv_write_bytes=sum(op.kv_write_bytes for op in ops),
        activation_bytes=sum(op.activation_bytes for op in ops),
        link_bytes=sum(op.link_bytes for op in ops),
    )


def tensor_ways(cluster: ClusterSpec) -> int:
    """Returns the tensor-parallel ways, which must be the whole mesh: other axes are separate engines.

    Raises:
      ConfigError: another axis is larger than 1.
    """
    if cluster.count != cluster.tensor:
        raise ConfigError(
            f"mesh {dict(cluster.mesh)}: only the axis 'tensor' is priced. Replicas are engines of their own: price "
            "one with its share of the requests"
        )
    return cluster.tensor


def dtype_bytes(dtype: str) -> float:
    """Returns bytes per element.

    Raises:
      ConfigError: unknown dtype.
    """
    if dtype not in BYTES_PER_ELEMENT:
        raise ConfigError(f"dtype {dtype!r} is not known.{nearest(dtype, BYTES_PER_ELEMENT)}")
    return BYTES_PER_ELEMENT[dtype]


def rest_dtype(precision: Precision) -> str:
    """Returns how embedding, head, router, norms and biases are stored: quantisation leaves them alone."""
    return precision.activations if precision.weights in QUANTISED_DTYPES else precision.weights


def kv_bytes_per_chip(model: ModelSpec, precision: Precision, ways: int) -> int:
    """Returns KV bytes per token that one chip holds, all layers; heads fewer than `ways` are replicated."""
    return kv_bytes_per_token(model, precision.kv) * math.ceil(model.kv_heads / ways) // model.kv_heads


def kv_scale_bytes_per_chip(model: ModelSpec, precision: Precision, ways: int) -> int:
    """Returns bytes per token of the float32 factors of keys and values, which KV of less than 16 bits has.

    They take memory, and are not priced: published figures of quantised KV leave them out (3% of heads of 128).
    """
    if dtype_bytes(precision.kv) >= dtype_bytes("bf16"):
        return 0
    return 2 * model.layers * math.ceil(model.kv_heads / ways) * int(dtype_bytes("f32"))


class _Parts:
    """Makes the operations of one `step_ops` call; holds what they share."""

    def __init__(self, model: ModelSpec, precision: Precision, counts: StepCounts, ways: int):
        self.model, self.precision, self.counts, self.ways = model, precision, counts, ways
        self.activation = dtype_bytes(precision.activations)
        self.matrix = dtype_bytes(precision.weights)
        self.rest = dtype_bytes(rest_dtype(precision))
        self.kv = kv_bytes_per_chip(model, precision, ways)
        self.heads = math.ceil(model.heads / ways)
        self.vocab = math.ceil(model.vocab / ways)
        self.layer_steps = model.layers * counts.steps

    def embed(self) -> Op:
        """Gathers one row a token, and its position's if positions are learned."""
        tables = 1 if self.model.rope_theta is not None else 2
        values = self.counts.new_tokens * self.model.hidden
        return Op(
            name="embed",
            kind="elementwise",
            weight_bytes=tables * values * self.rest,
            activation_bytes=values * self.activation,
            launches=self.counts.steps,
        )

    def matmul(self, matrix: Matrix) -> Op:
        """One matrix product of every layer."""
        counts, layers = self.counts, self.model.layers
        size = math.ceil(matrix.rows * matrix.columns * (self.matrix if matrix.quantised else self.rest))
        copies = 1
        if matrix.experts:
            per_step = counts.decode_seqs + counts.prefill_tokens  # a plan of several steps has no chunks
            copies = expected_experts(matrix.experts, matrix.passes, per_step)
        passes = layers * matrix.passes * counts.new_tokens
        return Op(
            name=matrix.name,
            kind="matmul",
            compute=self.precision.compute if matrix.quantised else self.precision.activations,
            flops=2 * matrix.rows * matrix.columns * passes,
            weight_bytes=self.layer_steps * size * copies,
            activation_bytes=passes * (matrix.rows + matrix.columns) * self.activation,
            launches=self.layer_steps,
        )

    def decode_attention(self) -> Op:
        """Decode rows read their KV once; a sliding window bounds how much."""
        counts = self.counts
        kv_tokens = counts.decode_kv_tokens if self.model.sliding_window_tokens is None else counts.decode_window_tokens
        return Op(
            name="attention_decode",
            kind="attention_decode",
            launches=self.layer_steps * (counts.decode_seqs > 0),
            **self._attend(counts.steps * counts.decode_seqs, kv_tokens, kv_tokens),
        )

    def prefill_attention(self) -> Op:
        """Chunks read KV once for all their queries, in a kernel of its own."""
        counts, full = self.counts, self.model.sliding_window_tokens is None
        pairs = counts.prefill_pairs if full else counts.prefill_window_pairs
        kv_tokens = counts.prefill_kv_tokens if full else counts.prefill_window_kv_tokens
        return Op(
            name="attention_prefill",
            kind="attention_prefill",
            launches=self.layer_steps * (counts.prefill_seqs > 0),
            reuse_tokens=(2 * pairs + (pairs == 0)) / (kv_tokens + (kv_tokens == 0)),
            **self._attend(counts.prefill_tokens, pairs, kv_tokens),
        )

    def _attend(self, tokens: Count, pairs: Count, kv_tokens: Count) -> dict:
        layers, values = self.model.layers, self.heads * self.model.head_size
        return {
            "compute": self.precision.activations,
            "flops": 4 * layers * values * pairs,
            "kv_read_bytes": kv_tokens * self.kv,
            "kv_write_bytes": tokens * self.kv,
            "activation_bytes": 2 * layers * tokens * values * self.activation,
        }

    def elementwise(self) -> Op:
        """Norms, rotation, gated activation; their weights are the norms' scales and the biases."""
        model, counts = self.model, self.counts
        heads = self.heads + 2 * math.ceil(model.kv_heads / self.ways)
        ffn = math.ceil((model.moe.top_k + model.moe.shared) * model.moe.ffn / self.ways) if model.moe else None
        gated = (3 if model.gated_mlp else 2) * (ffn or math.ceil(model.ffn / self.ways))
        # a norm with its residual reads two and writes two; rotation reads and writes q, k, v
        values = 8 * model.hidden + 2 * heads * model.head_size + gated
        parameters = parameter_counts(model)
        vectors = model.layers * parameters.vectors_per_layer + parameters.final_norm
        return Op(
            name="elementwise",
            kind="elementwise",
            weight_bytes=counts.steps * vectors * self.rest,
            unfused_bytes=model.layers * counts.new_tokens * values * self.activation,
            launches=ELEMENTWISE_PER_LAYER * self.layer_steps,
        )

    def head(self) -> Op:
        """The output matrix, on sampled rows only; not read when nothing is sampled."""
        model, sampled = self.model, self.counts.sampled
        active = self.counts.steps * (sampled > 0)
        return Op(
            name="head",
            kind="matmul",
            compute=self.precision.activations,
            flops=2 * model.hidden * self.vocab * sampled,
            weight_bytes=active * model.hidden * self.vocab * self.rest,
            activation_bytes=sampled * (model.hidden * self.activation + self.vocab * _LOGIT_BYTES),
            launches=active,
        )

    def sample(self) -> Op:
        """One pass over the logits."""
        sampled = self.counts.sampled
        return Op(
            name="sample",
            kind="elementwise",
            unfused_bytes=sampled * self.model.vocab * _LOGIT_BYTES,
            launches=self.counts.steps * (sampled > 0),
        )

    def all_reduce(self) -> Op:
        """Two sums of the residual stream per layer: after `o` and after `down`."""
        message = 2 * self.model.layers * self.counts.new_tokens * self.model.hidden * self.activation
        return Op(
            name="all_reduce",
            kind="collective",
            link_bytes=2 * (self.ways - 1) * message / self.ways,
            launches=2 * self.layer_steps,
        )

    def gather_logits(self) -> Op:
        """Every chip gets the logits of the others."""
        message = self.counts.sampled * self.model.vocab * self.activation
        return Op(
            name="gather_logits",
            kind="collective",
            link_bytes=(self.ways - 1) * message / self.ways,
            launches=self.counts.steps * (self.counts.sampled > 0),
        )
