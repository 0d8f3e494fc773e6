"""A compiled step beside what the memory model and the roofline say of it, as plain numbers.

Everything is of one chip and one call. Cycles become seconds by the clock that the chip's peak implies. What a program
cannot tell is assumed and written down: every row has the whole context, so attention's loops run as often as that
takes; and sampling is greedy unless the config's temperature is above 0.

Next: `roofline.compiled` (what is read from a program), `roofline.timing` (the other side).
"""

import dataclasses
from collections.abc import Mapping, Sequence

from kernels.pallas.aot_gpu import ResourceReport
from nanoserve.executors.aot import Compiled
from nanoserve.executors.aot_expected import (
    ATTENTION,
    COLLECTIVES,
    OTHER,
    PARTS,
    Setting,
    attention_trips,
    layer_arrays,
    model_flops,
    roofline_parts,
    step_counts,
    trips_within,
)
from nanoserve.roofline import compiled as hlo
from nanoserve.roofline.compiled_traffic import hbm_bytes
from nanoserve.roofline.memory import activation_peak_bytes, weight_bytes_per_chip
from nanoserve.roofline.split import split_of
from nanoserve.roofline.storage import kv_bytes_per_chip, kv_scale_bytes_per_chip
from nanoserve.specs.chips import ChipSpec

# Source: jax-ml/scaling-book, "How to Think About TPUs": 4 x 128x128 cells (v5e), two cores of that (v5p), and
# 4 x 256x256 (v6e) do one multiply-add each cycle. Peak over that gives 1.5, 1.75 and 1.75 GHz.
FLOPS_PER_CYCLE = {"tpu_v5e": 2 * 4 * 128**2, "tpu_v5p": 2 * 8 * 128**2, "tpu_v6e": 2 * 4 * 256**2}
LAYER_SLICES = "slices of a layer"
TOP = 8
NOTABLE_SHARE, NOTABLE_RATIO = 0.02, 1.5  # of the step, and over an instruction's own roofline


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
    """An instruction: how often a call runs it, and the operation it is of.

    Attributes:
      estimated_s: seconds of all runs, by XLA's estimate.
      roofline_s: the same at the chip's limits, from the bytes and products that the instruction itself names.
    """

    name: str
    times: float
    estimated_s: float
    roofline_s: float
    scope: str
    shapes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramReport:
    """One compiled program. Of one that was refused only `name`, `refused` and the seconds are filled.

    Attributes:
      product_flops: of matrix products and XLA attention, loops counted as often as they run. model_flops: of the
        cost model, cut evenly over the chips. counted_flops: XLA's own, each loop's body once.
      estimated_s: XLA's cycles for a TPU; 0 for a GPU. roofline_s: at datasheet limits, all parts.
      unestimated_s: what of `roofline_s` XLA estimates nothing of: collectives, and attention in a kernel. Products
        with quantised weights in a kernel are in neither `product_flops` nor `estimated_s`.
      above: instructions of a notable share of the estimate that take notably longer than their own roofline.
      kernels: what Mosaic kernels use, for a GPU.
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
    unestimated_s: float = 0.0
    trips: tuple[float, ...] = ()
    parts: tuple[Part, ...] = ()
    costly: tuple[Costly, ...] = ()
    above: tuple[Costly, ...] = ()
    kernels: ResourceReport | None = None
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
    trips, within = attention_trips(setting, compiled.name), trips_within(setting, compiled.name)
    program = hlo.parse(compiled.text)
    ran = hlo.executed(program, hlo.Assumed(trips, dearest_branch=setting.temperature > 0, within=within))
    counts = step_counts(setting, compiled.name)
    roofline = roofline_parts(setting, counts)
    priced = _Prices(program, setting.cluster.chip)
    costly = [priced.of(each) for each in ran if each.cycles]
    estimated_s = sum(each.estimated_s for each in costly)
    copied = hlo.copies(program, ran, layer_arrays(setting))
    kernels = ATTENTION if setting.attention != "xla" else ()
    return ProgramReport(
        **common,
        memory=memory(compiled, setting),
        product_flops=sum(hlo.product_flops(program, ran).values()),
        model_flops=model_flops(setting, counts),
        counted_flops=compiled.counted_flops,
        estimated_s=estimated_s,
        roofline_s=sum(roofline.values()),
        unestimated_s=sum(roofline.get(part, 0.0) for part in (COLLECTIVES, *kernels)),
        trips=trips,
        parts=_parts(costly, roofline),
        costly=tuple(sorted(costly, key=lambda each: -each.estimated_s)[:TOP]),
        above=tuple(each for each in costly if _is_above(each, estimated_s)),
        copies=tuple(priced.of(each) for each in copied),
        collectives=hlo.collectives(program, ran),
        kernels=compiled.kernels,
    )


class _Prices:
    """Seconds of instructions: by XLA's estimate, and at the limits of the chip."""

    def __init__(self, program: hlo.Program, chip: ChipSpec):
        self.program, self.chip = program, chip
        self.clock = clock_hz(chip) if chip.name in FLOPS_PER_CYCLE else 0.0

    def of(self, each: hlo.Executed) -> Costly:
        instruction = each.instruction
        moved = hbm_bytes(self.program, each.computation, instruction) / self.chip.hbm_bytes_per_s
        flops = sum(hlo.product_flops(self.program, [each]).values()) / self.chip.peak("bf16")
        return Costly(
            name=instruction.name,
            times=each.times,
            estimated_s=each.cycles / self.clock if self.clock else 0.0,
            roofline_s=max(each.times * moved, flops),
            scope=instruction.scope,
            shapes=tuple(f"{a.dtype}[{','.join(map(str, a.shape))}]" for a in instruction.results),
        )


def _is_above(each: Costly, total_s: float) -> bool:
    return each.estimated_s > max(NOTABLE_SHARE * total_s, NOTABLE_RATIO * each.roofline_s)


def clock_hz(chip: ChipSpec) -> float:
    """Returns cycles per second: peak bf16 FLOP/s over what the matrix units do in a cycle."""
    return chip.peak("bf16") / FLOPS_PER_CYCLE[chip.name]


def memory(compiled: Compiled, setting: Setting) -> Memory:
    """Returns the compiler's bytes beside the memory model's."""
    model, precision, split, work = setting.model, setting.precision, split_of(setting.cluster), setting.work
    found, parts = compiled.memory, (split.head_ways, split.pipeline)
    counts = step_counts(setting, compiled.name)
    tokens, rows = counts.new_tokens // counts.steps, counts.sampled // counts.steps
    token_bytes = kv_bytes_per_chip(model, precision, *parts) + kv_scale_bytes_per_chip(model, precision, *parts)
    return Memory(
        weights=compiled.weight_bytes,
        kv=compiled.kv_bytes,
        rest=found["argument"] - compiled.weight_bytes - compiled.kv_bytes,
        temp=found["temp"],
        output=found["output"],
        alias=found["alias"],
        code=found["generated_code"],
        model_weights=weight_bytes_per_chip(model, precision, split),
        model_kv=work.pages * work.page_tokens * token_bytes,
        model_activations=activation_peak_bytes(model, precision, split.tensor, tokens, rows),
    )


def part_of(scope: str) -> str:
    """Returns the part of a step that a JAX operation path belongs to."""
    path = scope.split("/")
    if found := next((part for part in PARTS if part in path), None):
        return found
    return LAYER_SLICES if any("dynamic_index_in_dim" in name for name in path) else OTHER


def _parts(costly: Sequence[Costly], roofline: Mapping[str, float]) -> tuple[Part, ...]:
    seconds: dict[str, float] = {}
    for each in costly:
        part = part_of(each.scope)
        seconds[part] = seconds.get(part, 0.0) + each.estimated_s
    some = [name for name in {**roofline, **seconds} if seconds.get(name) or roofline.get(name)]
    names = sorted(some, key=lambda name: (-seconds.get(name, 0.0), -roofline.get(name, 0.0)))
    return tuple(
        Part(name=name, estimated_s=seconds.get(name, 0.0), roofline_s=roofline.get(name, 0.0)) for name in names
    )
