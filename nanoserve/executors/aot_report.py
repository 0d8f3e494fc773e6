"""A compiled step beside what the memory model and the roofline say of it, as plain numbers.

Everything is of one chip and one call. Cycles become seconds by the clock that the chip's peak implies. What a program
cannot tell is assumed and written down: every row has the whole context, so attention's loops run as often as that
takes; and sampling is greedy unless the config's temperature is above 0.

Next: `roofline.compiled` (what is read from a program), `roofline.timing` (the other side).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kernels.pallas.paged_attention import xla
from nanoserve.executors.aot import Compiled, Workload
from nanoserve.model import params as model_params
from nanoserve.model import sharding
from nanoserve.roofline import compiled as hlo
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.counts import StepCounts, causal_pairs, window_kv_tokens, window_pairs
from nanoserve.roofline.memory import activation_peak_bytes, weight_bytes_per_chip
from nanoserve.roofline.ops import attention_flops, kv_bytes_per_chip, matmul_flops, step_ops
from nanoserve.roofline.timing import op_times
from nanoserve.specs.chips import ChipSpec, ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

# Source: jax-ml/scaling-book, "How to Think About TPUs": 4 x 128x128 cells (v5e), two cores of that (v5p), and
# 4 x 256x256 (v6e) do one multiply-add each cycle. Peak over that gives 1.5, 1.75 and 1.75 GHz.
FLOPS_PER_CYCLE = {"tpu_v5e": 2 * 4 * 128**2, "tpu_v5p": 2 * 8 * 128**2, "tpu_v6e": 2 * 4 * 256**2}
PARTS = ("qkv", "out", "decode_attention", "prefill_attention", "mlp", "head", "sample", "write_kv", "rope", "embed")
OPS_OF: Mapping[str, str] = {
    "o": "out", "gate_up": "mlp", "down": "mlp", "attention_decode": "decode_attention",
    "attention_prefill": "prefill_attention", "gather_logits": "collectives", "all_reduce": "collectives",
}  # fmt: skip
LAYER_SLICES, OTHER = "slices of a layer", "other"
TOP = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What was compiled."""

    model: ModelSpec
    cluster: ClusterSpec
    precision: Precision
    work: Workload
    attention: str
    temperature: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one chip: the compiler's, split by our shapes, and the memory model's.

    Attributes:
      weights, kv: arguments by shape. rest: other arguments, and the padding of all; the three sum to the compiler's
        arguments. temp, output, code: the compiler's. alias: arguments that are updated in place.
      model_weights, model_kv, model_activations: what `roofline.memory` counts.
    """

    weights: int
    kv: int
    rest: int
    temp: int
    output: int
    alias: int
    code: int
    model_weights: int
    model_kv: int
    model_activations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A named part of a step: XLA's estimate and the roofline's time, in seconds."""

    name: str
    estimated_s: float
    roofline_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costly:
    """An instruction: how often a call runs it, seconds of all runs by XLA's estimate, and the operation it is of."""

    name: str
    times: float
    estimated_s: float
    scope: str
    shapes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramReport:
    """One compiled program. Of one that was refused only `name`, `refused` and the seconds are filled.

    Attributes:
      product_flops: of matrix products and XLA attention, loops counted as often as they run. model_flops: of the
        cost model, cut evenly over the chips. counted_flops: XLA's own, each loop's body once.
      estimated_s: XLA's cycles. roofline_s: at datasheet limits, collectives included, of which XLA estimates nothing.
      trips: what was assumed of loops whose length depends on data, outermost first.
    """

    name: str
    refused: str = ""
    lower_s: float
    compile_s: float
    memory: Memory | None = None
    product_flops: float = 0.0
    model_flops: float = 0.0
    counted_flops: float = 0.0
    estimated_s: float = 0.0
    roofline_s: float = 0.0
    trips: tuple[float, ...] = ()
    parts: tuple[Part, ...] = ()
    costly: tuple[Costly, ...] = ()
    copies: tuple[Costly, ...] = ()
    collectives: tuple[hlo.Collective, ...] = ()


def describe(compiled: Compiled, setting: Setting) -> ProgramReport:
    """Returns a program's figures beside those of the models.

    Raises:
      ConfigError: the program has a loop that nothing here knows.
    """
    common = {"name": compiled.name, "lower_s": compiled.lower_s, "compile_s": compiled.compile_s}
    if compiled.refused:
        return ProgramReport(refused=compiled.refused, **common)
    trips = attention_trips(setting, compiled.name)
    program = hlo.parse(compiled.text)
    ran = hlo.executed(program, hlo.Assumed(trips, dearest_branch=setting.temperature > 0))
    clock = clock_hz(setting.cluster.chip)
    counts = step_counts(setting, compiled.name)
    roofline = roofline_parts(setting, counts)
    estimated = [(each, each.cycles / clock) for each in ran if each.cycles]
    copied = hlo.copies(program, ran, layer_arrays(setting))
    return ProgramReport(
        **common,
        memory=memory(compiled, setting),
        product_flops=sum(hlo.product_flops(program, ran).values()),
        model_flops=model_flops(setting, counts),
        counted_flops=compiled.counted_flops,
        estimated_s=sum(seconds for _, seconds in estimated),
        roofline_s=sum(roofline.values()),
        trips=trips,
        parts=_parts(estimated, roofline),
        costly=tuple(_costly(*each) for each in sorted(estimated, key=lambda each: -each[1])[:TOP]),
        copies=tuple(_costly(each, each.cycles / clock) for each in copied),
        collectives=hlo.collectives(program, ran),
    )


def clock_hz(chip: ChipSpec) -> float:
    """Returns cycles per second: peak bf16 FLOP/s over what the matrix units do in a cycle."""
    return chip.peak("bf16") / FLOPS_PER_CYCLE[chip.name]


def attention_trips(setting: Setting, program: str) -> tuple[float, ...]:
    """Returns how often the loops of XLA attention run; kernels have none that data decides."""
    work, window = setting.work, setting.model.sliding_window_tokens
    if setting.attention != "xla":
        return ()
    pages = (work.page_tokens, work.table_pages)
    chunk = xla.chunk_tokens(*pages)
    context = np.array([work.context_tokens])
    if program == "decode_step":
        return (xla.decode_gathered_tokens(context, *pages, window) / chunk,)
    blocks = -(-work.chunk_tokens // min(xla.QUERY_BLOCK, work.chunk_tokens))
    chunks = np.array([work.chunk_tokens])
    gathered = xla.prefill_gathered_tokens(context, chunks, work.chunk_tokens, *pages, window)
    return float(blocks), gathered / chunk / blocks


def step_counts(setting: Setting, program: str) -> StepCounts:
    """Returns the compiled step in the cost model's terms: every row is there and has the whole context."""
    work, context, chunk = setting.work, setting.work.context_tokens, setting.work.chunk_tokens
    window = setting.model.sliding_window_tokens or context
    if program == "decode_step":
        rows = {"decode_kv_tokens": work.batch * context, "decode_window_tokens": work.batch * min(context, window)}
        return StepCounts(decode_seqs=work.batch, sampled=work.batch, **rows)
    past = context - chunk
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

    Attention is left out where a kernel computes it, whose products are not in the program's text.
    """
    full = setting.model.sliding_window_tokens is None
    pairs = counts.decode_kv_tokens + counts.prefill_pairs
    pairs = pairs if full else counts.decode_window_tokens + counts.prefill_window_pairs
    attention = attention_flops(setting.model, pairs) if setting.attention == "xla" else 0
    return (matmul_flops(setting.model, counts.new_tokens, counts.sampled) + attention) / setting.cluster.tensor


def layer_arrays(setting: Setting) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes, on one chip, of one layer's matrices and KV, and of all layers' together."""
    model, work, ways = setting.model, setting.work, setting.cluster.tensor

    def on_chip(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[int, ...]:
        return tuple(size // (ways if axis in sharding.RULES else 1) for size, axis in zip(shape, axes, strict=True))

    matrices = ("wqkv", "wo", "w_gate_up", "w_down")
    stacks = [on_chip(model_params.shape_of(model, field), model_params.AXES[field]) for field in matrices]
    pool = (model.layers, work.pages, work.page_tokens, model.kv_heads, 2, model.head_size)
    stacks.append(on_chip(pool, (None, None, None, "kv_heads", None, None)))
    return (*stacks, *(stack[1:] for stack in stacks))


def memory(compiled: Compiled, setting: Setting) -> Memory:
    """Returns the compiler's bytes beside the memory model's."""
    model, precision, ways, work = setting.model, setting.precision, setting.cluster.tensor, setting.work
    found = compiled.memory
    tokens, rows = (work.batch, work.batch) if compiled.name == "decode_step" else (work.chunk_tokens, 1)
    return Memory(
        weights=compiled.weight_bytes,
        kv=compiled.kv_bytes,
        rest=found["argument"] - compiled.weight_bytes - compiled.kv_bytes,
        temp=found["temp"],
        output=found["output"],
        alias=found["alias"],
        code=found["generated_code"],
        model_weights=weight_bytes_per_chip(model, precision, ways),
        model_kv=work.pages * work.page_tokens * kv_bytes_per_chip(model, precision, ways),
        model_activations=activation_peak_bytes(model, precision, ways, tokens, rows),
    )


def part_of(scope: str) -> str:
    """Returns the part of a step that a JAX operation path belongs to."""
    path = scope.split("/")
    if found := next((part for part in PARTS if part in path), None):
        return found
    return LAYER_SLICES if any("dynamic_index_in_dim" in name for name in path) else OTHER


def _parts(estimated: Sequence[tuple[hlo.Executed, float]], roofline: Mapping[str, float]) -> tuple[Part, ...]:
    seconds: dict[str, float] = {}
    for each, took in estimated:
        part = part_of(each.instruction.scope)
        seconds[part] = seconds.get(part, 0.0) + took
    some = [name for name in {**roofline, **seconds} if seconds.get(name) or roofline.get(name)]
    names = sorted(some, key=lambda name: -seconds.get(name, 0.0))
    return tuple(
        Part(name=name, estimated_s=seconds.get(name, 0.0), roofline_s=roofline.get(name, 0.0)) for name in names
    )


def _costly(each: hlo.Executed, seconds: float) -> Costly:
    instruction = each.instruction
    shapes = tuple(f"{a.dtype}[{','.join(map(str, a.shape))}]" for a in instruction.results)
    return Costly(name=instruction.name, times=each.times, estimated_s=seconds, scope=instruction.scope, shapes=shapes)
