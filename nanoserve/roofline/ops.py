"""What a step computes and moves, operation class by operation class.

`step_ops` turns a model, a mesh, dtypes and a plan's `StepCounts` into a tuple of `Op`. Invariants: everything is
summed over all layers and all steps of the plan, **per chip** (the busiest one: a chip of a tensor-parallel group holds
`ceil(n / ways)` heads, columns or vocabulary rows; `split` says what the other axes divide); FLOPs of integer counts
are exact Python integers where only `tensor` divides them; the same code takes integers, NumPy arrays (one entry a
plan) and JAX values under a trace (with 64-bit types on: FLOPs overflow int32).

Matrices are read from HBM once per device step. Routed experts are read as often as they are chosen at least once,
under uniform routing. Activations are counted where any program has to move them, at the inputs and outputs of matrix
products and attention; what separate element-wise kernels move besides is `unfused_bytes`, which a fused program does
not move. Soft caps are done where the scores are, moving nothing: they cost nothing here.

Next: `timing` (seconds), `pricing` (ticks), `records` (columns of a run).
"""

from collections.abc import Iterator

from nanoserve.roofline.collectives import collectives
from nanoserve.roofline.counts import Count, StepCounts
from nanoserve.roofline.matrices import Matrix, layer_matrices
from nanoserve.roofline.moe import busiest_experts, busiest_load
from nanoserve.roofline.op import Op
from nanoserve.roofline.storage import rest_dtype
from nanoserve.roofline.work import Work, work_of
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec
from nanoserve.specs.sizes import parameter_counts

_OTHER_ELEMENTWISE = 2  # a layer: rotation and KV write, gated activation
_LOGIT_BYTES = 4  # logits are sampled from in float32


def step_ops(model: ModelSpec, cluster: ClusterSpec, precision: Precision, counts: StepCounts) -> tuple[Op, ...]:
    """Returns the operations of a plan, of the busiest chip; of one replica, where the mesh has several.

    Args:
      model, cluster, precision: what runs, where, in which dtypes.
      counts: the plan (integers) or many plans (arrays).

    Raises:
      ConfigError: unknown dtype or mesh axis.
    """
    return tuple(_ops(work_of(model, cluster, precision, counts)))


def decode_attention(model: ModelSpec, cluster: ClusterSpec, precision: Precision, counts: StepCounts) -> Op:
    """Returns that one of `step_ops`: the one that drafted tokens change in another way than more tokens would."""
    return _decode_attention(work_of(model, cluster, precision, counts))


def prefill_attention(model: ModelSpec, cluster: ClusterSpec, precision: Precision, counts: StepCounts) -> Op:
    """Returns that one of `step_ops`: the only one whose time depends on more than how many tokens there are."""
    return _prefill_attention(work_of(model, cluster, precision, counts))


def _ops(work: Work) -> Iterator[Op]:
    yield _embed(work)
    yield _decode_attention(work)
    yield _prefill_attention(work)
    for matrix in layer_matrices(work.model, work.split.head_ways, work.split.tensor):
        yield _experts(work, matrix) if matrix.experts else _product(work, matrix)
    yield _elementwise(work)
    yield _head(work)
    yield _sample(work)
    yield Op(name="host", kind="host", launches=work.counts.steps)
    yield Op(name="host_rows", kind="host", work_items=work.counts.sampled)
    yield from collectives(work)


def _embed(work: Work) -> Op:
    """Gathers one row a token, and its position's if positions are learned."""
    tables = 1 if work.model.rope_theta is not None else 2
    values = work.new_tokens * work.model.hidden
    return Op(
        name="embed",
        kind="elementwise",
        weight_bytes=tables * values * work.rest_bytes,
        activation_bytes=values * work.activation_bytes,
        launches=work.passes,
    )


def _product(work: Work, matrix: Matrix) -> Op:
    """A matrix that every token goes through, in every layer that has it."""
    layers = work.layers(matrix.layers)
    tokens, size = layers * work.new_tokens, work.matrix_bytes(matrix.rows * matrix.columns, matrix.quantised)
    return Op(
        name=matrix.name,
        kind="matmul",
        compute=work.precision.compute if matrix.quantised else work.precision.activations,
        stored=work.precision.weights if matrix.quantised else rest_dtype(work.precision),
        flops=2 * matrix.rows * matrix.columns * tokens,
        weight_bytes=layers * work.passes * size,
        activation_bytes=tokens * (matrix.rows + matrix.columns) * work.activation_bytes,
        launches=layers * work.passes,
        rows=matrix.rows,
        columns=matrix.columns,
        idle=work.idle,
    )


def _experts(work: Work, matrix: Matrix) -> Op:
    """A matrix of each routed expert, all in one grouped product: as much as the busiest group has to do."""
    layers, groups = work.layers(matrix.layers), work.split.expert
    chosen = matrix.experts, matrix.passes, work.tokens_per_pass, groups
    rows = layers * work.passes * busiest_load(*chosen)
    size = work.matrix_bytes(matrix.rows * matrix.columns, matrix.quantised)
    return Op(
        name=matrix.name,
        kind="grouped_matmul",
        compute=work.precision.compute,
        flops=2 * matrix.rows * matrix.columns * rows,
        weight_bytes=layers * work.passes * size * busiest_experts(*chosen),
        activation_bytes=rows * (matrix.rows + matrix.columns) * work.activation_bytes,
        launches=layers * work.passes,
        rows=matrix.rows,
        columns=matrix.columns,
        idle=work.idle,
    )


def _decode_attention(work: Work) -> Op:
    """Decode rows read their KV once, also for drafted tokens; a sliding window bounds how much in its layers."""
    counts, shape, layers = work.counts, work.attention, work.layers()
    attended = work.over_layers(counts.decode_kv_tokens, counts.decode_window_tokens)
    pairs = attended + work.over_layers(counts.drafted_pairs, counts.drafted_window_pairs)
    rows = layers * counts.steps * counts.decode_seqs
    tokens = rows + layers * counts.drafted_tokens
    return Op(
        name="attention_decode",
        kind="attention_decode",
        compute=work.precision.activations,
        flops=shape.decode_flops * pairs,
        kv_read_bytes=attended * work.kv_layer_bytes,
        kv_write_bytes=tokens * work.kv_layer_bytes,
        activation_bytes=tokens * shape.decode_values * work.activation_bytes,
        launches=layers * work.passes * (counts.decode_seqs > 0),
        work_items=rows * shape.kv_heads,
        heads=_heads(work),
        idle=work.attention_idle,
    )


def _heads(work: Work) -> tuple[int, int, int] | None:
    model, split = work.model, work.split
    if model.mla is not None or model.sliding_window_tokens is not None:
        return None
    return split.heads(model.heads), split.heads(model.kv_heads), model.head_size


def _prefill_attention(work: Work) -> Op:
    """Chunks read KV once for all their queries, in a kernel of its own; latents of the past are expanded again."""
    counts, shape, layers = work.counts, work.attention, work.layers()
    pairs = work.over_layers(counts.prefill_pairs, counts.prefill_window_pairs)
    positions = work.over_layers(counts.prefill_kv_tokens, counts.prefill_window_kv_tokens)
    tokens = layers * counts.prefill_tokens
    past = positions - tokens if shape.expansion_flops else 0
    return Op(
        name="attention_prefill",
        kind="attention_prefill",
        compute=work.precision.activations,
        flops=shape.prefill_flops * pairs + shape.expansion_flops * past,
        kv_read_bytes=positions * work.kv_layer_bytes,
        kv_write_bytes=tokens * work.kv_layer_bytes,
        activation_bytes=tokens * shape.prefill_values * work.activation_bytes,
        launches=layers * work.passes * (counts.prefill_seqs > 0),
        work_items=layers * counts.prefill_seqs * shape.kv_heads,
        heads=_heads(work),
        idle=work.attention_idle,
    )


def _elementwise(work: Work) -> Op:
    """Norms, rotation with the KV write, gated activation; their weights are the norms' scales and the biases."""
    layers, parameters = work.layers(), parameter_counts(work.model)
    # a norm with its residual reads two and writes two
    norms = 4 if work.model.post_norms else 2
    values = layers * (8 * work.model.hidden + 2 * _turned_values(work)) + _gated_values(work)
    values += layers * (norms - 2) * 2 * work.model.hidden  # those after a part are of its result alone
    vectors = layers * parameters.vectors_per_layer + parameters.final_norm
    return Op(
        name="elementwise",
        kind="elementwise",
        weight_bytes=work.passes * vectors * work.rest_bytes,
        unfused_bytes=work.new_tokens * values * work.activation_bytes,
        launches=(norms + _OTHER_ELEMENTWISE) * layers * work.passes,
        idle=work.idle,
    )


def _turned_values(work: Work) -> int:
    """Elements per token and layer that rotation reads and writes: q, k and v, or the rotated parts and the latents."""
    model, split = work.model, work.split
    if model.mla is None:
        return (split.heads(model.heads) + 2 * split.heads(model.kv_heads)) * model.head_size
    latents = model.mla.q_rank + model.mla.kv_rank
    return (split.heads(model.heads) + 1) * model.mla.rope_size + latents


def _gated_values(work: Work) -> int:
    """Elements per token that the activations of all layers read and write."""
    model, moe, split = work.model, work.model.moe, work.split
    dense = split.layers(model.layers if moe is None else moe.dense_layers) * split.columns(model.ffn)
    routed = 0
    if moe is not None:
        routed = split.layers(model.layers - moe.dense_layers) * split.columns((moe.top_k + moe.shared) * moe.ffn)
    return (3 if model.gated_mlp else 2) * (dense + routed)


def _head(work: Work) -> Op:
    """The output matrix, on sampled rows only; not read when nothing is sampled."""
    model, sampled, columns = work.model, work.counts.sampled, work.split.columns(work.model.vocab)
    active = work.passes * (sampled > 0)
    return Op(
        name="head",
        kind="matmul",
        compute=work.precision.activations,
        stored=rest_dtype(work.precision),
        flops=2 * model.hidden * columns * sampled,
        weight_bytes=active * model.hidden * columns * work.rest_bytes,
        activation_bytes=sampled * (model.hidden * work.activation_bytes + columns * _LOGIT_BYTES),
        launches=active,
        rows=model.hidden,
        columns=columns,
    )


def _sample(work: Work) -> Op:
    """One pass over the logits."""
    sampled: Count = work.counts.sampled
    return Op(
        name="sample",
        kind="elementwise",
        unfused_bytes=sampled * work.model.vocab * _LOGIT_BYTES,
        launches=work.passes * (sampled > 0),
    )
