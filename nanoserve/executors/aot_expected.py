"""What a compiled step should come to: the cost model's side of an ahead-of-time report.

Everything is of one chip and one call. What a program's text cannot tell is assumed here: every row is there and has
the whole context, so loops over KV run as often as that takes.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from kernels.pallas.paged_attention import xla
from nanoserve.executors.aot import Workload
from nanoserve.executors.precisions import storage
from nanoserve.model import params as model_params
from nanoserve.model import quantised, sharding
from nanoserve.model.params import spread
from nanoserve.model.quantised import MATRICES, Storage
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.counts import StepCounts, causal_pairs, window_kv_tokens, window_pairs
from nanoserve.roofline.matrices import attention_flops, matmul_flops
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.speculative import Verification, verify_counts
from nanoserve.roofline.split import split_of
from nanoserve.roofline.timing import op_times
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

PARTS = ("qkv", "out", "decode_attention", "prefill_attention", "mlp", "head", "sample", "write_kv", "rope", "embed")
OPS_OF: Mapping[str, str] = {
    "o": "out", "gate_up": "mlp", "down": "mlp", "attention_decode": "decode_attention",
    "attention_prefill": "prefill_attention", "gather_logits": "collectives", "all_reduce": "collectives",
    "send": "collectives", "experts_gate_up": "mlp", "experts_down": "mlp", "router": "mlp",
}  # fmt: skip
DECODES = ("decode_step", "decode_loop")
COLLECTIVES, OTHER = "collectives", "other"
ATTENTION = ("decode_attention", "prefill_attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What was compiled."""

    model: ModelSpec
    cluster: ClusterSpec
    precision: Precision
    work: Workload
    attention: str
    temperature: float = 0.0


def attention_trips(setting: Setting, program: str) -> tuple[float, ...]:
    """Returns how often loops run whose length is data, outermost first: decode steps, and those of XLA attention."""
    if program == "mixed_step":
        return tuple(itertools.chain.from_iterable(trips_within(setting, program).values()))
    work, window = setting.work, setting.model.sliding_window_tokens
    steps = (float(work.loop_steps),) if program == "decode_loop" else ()
    if setting.attention != "xla":
        return steps
    pages = (work.page_tokens, work.table_pages)
    chunk = xla.chunk_tokens(*pages)
    context = np.array([work.context_tokens])
    if program in DECODES:
        return (*steps, xla.decode_gathered_tokens(context, *pages, window) / chunk)
    blocks = -(-work.chunk_tokens // min(xla.QUERY_BLOCK, work.chunk_tokens))
    chunks = np.array([work.chunk_tokens])
    gathered = xla.prefill_gathered_tokens(context, chunks, work.chunk_tokens, *pages, window)
    return float(blocks), gathered / chunk / blocks


def trips_within(setting: Setting, program: str) -> dict[str, tuple[float, ...]]:
    """Returns by scope what `attention_trips` cannot tell apart: both parts of a mixed step have loops of their own."""
    parts = {"decode_attention": "decode_step", "prefill_attention": "prefill_step"}
    return {scope: attention_trips(setting, alone) for scope, alone in parts.items() if program == "mixed_step"}


def step_counts(setting: Setting, program: str) -> StepCounts:
    """Returns the compiled step in the cost model's terms: every row is there and has the whole context."""
    if program == "prefill_step":
        return _prefill_counts(setting)
    if program == "verify_step":
        return _verify_counts(setting)
    decode = _decode_counts(setting, setting.work.loop_steps if program == "decode_loop" else 1)
    if program != "mixed_step":
        return decode
    prefill = _prefill_counts(setting)
    both = {name: getattr(decode, name) + getattr(prefill, name) for name in _summed()}
    return dataclasses.replace(decode, **both)


def _summed() -> list[str]:
    """What a step of two parts has of both; its one device step is no part's own."""
    return [field.name for field in dataclasses.fields(StepCounts) if field.name != "steps"]


def _decode_counts(setting: Setting, steps: int) -> StepCounts:
    work, context = setting.work, setting.work.context_tokens
    window = setting.model.sliding_window_tokens or context
    lengths = [context - step for step in range(steps)]
    return StepCounts(
        steps=steps,
        decode_seqs=work.batch,
        decode_kv_tokens=work.batch * sum(lengths),
        decode_window_tokens=work.batch * sum(min(length, window) for length in lengths),
        sampled=steps * work.batch,
    )


def _verify_counts(setting: Setting) -> StepCounts:
    work = setting.work
    past = work.context_tokens - 1 - work.draft_tokens
    step = Verification(rows=work.batch, past_tokens=past, draft_tokens=work.draft_tokens)
    return verify_counts(step, setting.model.sliding_window_tokens)


def _prefill_counts(setting: Setting) -> StepCounts:
    context, chunk = setting.work.context_tokens, setting.work.chunk_tokens
    window, past = setting.model.sliding_window_tokens or context, context - chunk
    return StepCounts(
        prefill_seqs=1,
        prefill_tokens=chunk,
        prefill_pairs=causal_pairs(past, chunk),
        prefill_window_pairs=window_pairs(past, chunk, window),
        prefill_kv_tokens=context,
        prefill_window_kv_tokens=window_kv_tokens(past, chunk, window),
        sampled=1,
    )


def roofline_parts(setting: Setting, counts: StepCounts) -> dict[str, float]:
    """Returns seconds at datasheet limits by part of the program."""
    constants = constants_for(setting.cluster.chip, setting.precision, "sol")
    seconds: dict[str, float] = {}
    for op in step_ops(setting.model, setting.cluster, setting.precision, counts):
        part = OPS_OF.get(op.name, op.name if op.name in PARTS else OTHER)
        seconds[part] = seconds.get(part, 0.0) + float(op_times(op, setting.cluster, constants).total)
    return seconds


def model_flops(setting: Setting, counts: StepCounts) -> float:
    """Returns the cost model's FLOPs of one chip: products, and attention over the pairs that are needed.

    Attention is left out where a kernel computes it, whose products are not in the program's text. Turns in which a
    pipeline's stage idles are not needed, and not counted.
    """
    full = setting.model.sliding_window_tokens is None
    pairs = counts.decode_kv_tokens + counts.drafted_pairs + counts.prefill_pairs
    if not full:
        pairs = counts.decode_window_tokens + counts.drafted_window_pairs + counts.prefill_window_pairs
    attention = attention_flops(setting.model, pairs) if setting.attention == "xla" else 0
    chips = split_of(setting.cluster).replica_chips
    return (matmul_flops(setting.model, counts.new_tokens, counts.sampled) + attention) / chips


def _stack(model: ModelSpec, field: str, how: Storage | None, ways: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape and logical axes of all layers of a matrix, as it lies in memory."""
    shape, axes = model_params.shape_of(model, field), model_params.AXES[field]
    if how is None:
        return shape, axes
    return quantised.abstract(field, shape, how, ways).stack.values.shape, tuple(quantised.axes_of(axes, how).values)


def layer_arrays(setting: Setting) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes, on one chip, of one layer's matrices and KV, and of all the chip's layers' together."""
    mesh, work = setting.cluster.mesh, setting.work
    model = spread(setting.model, split_of(setting.cluster).head_ways)

    def on_chip(shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(size // sharding.ways_along(mesh, axis) for size, axis in zip(shape, axes, strict=True))

    how = storage(setting.precision)
    stacks = [on_chip(*_stack(model, field, how, setting.cluster.tensor)) for field in MATRICES]
    if model.moe is not None:
        stacks += [on_chip(*_stack(model, field, None, 1)) for field in ("w_experts_gate_up", "w_experts_down")]
    pool = (model.layers, work.pages, work.page_tokens, model.kv_heads, 2, model.head_size)
    stacks.append(on_chip(pool, ("layers", "pages", "offsets", "kv_heads", "key_or_value", "head_size")))
    return (*stacks, *(stack[1:] for stack in stacks))
