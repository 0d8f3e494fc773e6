"""What a compiled program says of itself: collectives, estimated cycles, products and copies, read from its HLO text.

A program is computations of instructions. `executed` walks those that control flow reaches and says how often each
instruction runs, so that every sum below is of one call. Loop lengths are read where the program states them (a scan
over layers); those that only the data knows (attention over KV chunks) are given by the caller, as `Assumed`. Of a
conditional one branch runs, the one with the fewest or the most estimated cycles.

Text, not the compiler's own objects: XLA's cost analysis counts a loop's body once, and says nothing by instruction.
Sizes are logical ones, without the padding of tiles. Next: `executors.aot`, which makes such programs.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from nanoserve.specs.errors import ConfigError

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
UNKNOWN_CYCLES = 2**63 - 1  # what XLA writes where it has no estimate
_BITS = {"pred": 8, "s4": 4, "u4": 4}
_CONTROL = ("while", "conditional", "call")
_COMPUTES = ("convolution", "dot", "scatter", "dynamic-update-slice", "custom-call")  # the last is cuBLAS
_NOT_COPIES = ("parameter", "get-tuple-element", "tuple", "bitcast", "add", "multiply", "custom-call", *_CONTROL)

_NAME = r"%([\w.-]+)"
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(rf"^(ENTRY )?{_NAME} \(.*\{{$")
_INSTRUCTION = re.compile(rf"^  (ROOT )?{_NAME} = (.*)$")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply|(?:true|false)_computation|branch_computations)=(\{[^}]*\}|\S+)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """One array of a result: element type, shape, and whether it lies in on-chip memory rather than in HBM."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool

    @property
    def elements(self) -> int:
        """How many values."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype) or (int(digits[0]) if digits else 0)  # a token or an opaque handle has no size
        return math.ceil(self.elements * bits / 8)


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a program.

    Attributes:
      name, opcode: as XLA names them. results: one array, or those of a tuple. operands: names of instructions.
      called: computations by role: `body`, `condition`, `calls`, or branches in order. scope: the JAX operation.
      cycles: XLA's estimate of one execution; None where it has none.
      attributes: the rest of the line; of a constant its value, of a parameter its number.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    scope: str
    cycles: int | None
    attributes: str


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """Computations by name, each with its instructions in order, its root last; `entry` names where it starts."""

    entry: str
    computations: Mapping[str, tuple[Instruction, ...]]

    def parts(self, computation: str, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
        """The instruction and all that is fused into it, each with the computation that holds it; no loop's body."""
        yield computation, instruction
        for name in () if instruction.opcode in _CONTROL else instruction.called:
            for inner in self.computations[name]:
                yield from self.parts(name, inner)


@dataclasses.dataclass(frozen=True, slots=True)
class Assumed:
    """What a program's text cannot tell.

    Attributes:
      trips: how often loops run whose length depends on data, by how deep they lie in one another (outermost first).
      dearest_branch: a conditional takes the branch with the most cycles, else the one with the fewest.
      within: scope -> `trips` of the loops in it, where they differ.
    """

    trips: tuple[float, ...] = ()
    dearest_branch: bool = False
    within: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Executed:
    """An instruction, the computation that holds it, and how often a call of the program runs it."""

    instruction: Instruction
    computation: str
    times: float

    @property
    def cycles(self) -> float:
        """XLA's estimate of all its executions; 0 where it has none."""
        return self.times * (self.instruction.cycles or 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Collective:
    """Collectives of one kind and size: how many a call runs, and the bytes that one gives each chip."""

    kind: str
    times: float
    size_bytes: int


def parse(text: str) -> Program:
    """Reads the HLO text of a compiled program, as `jax.stages.Compiled.as_text` prints it.

    Raises:
      ConfigError: the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = None, ""
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            current = begins[2]
            computations[current] = []
            entry = current if begins[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_instruction(found[2], found[3]))
    if entry is None:
        raise ConfigError("the text is no compiled program: it has no ENTRY computation. Give what as_text() returns")
    return Program(entry, {name: tuple(lines) for name, lines in computations.items()})


def executed(program: Program, assumed: Assumed = Assumed()) -> tuple[Executed, ...]:
    """Returns every instruction that control flow reaches, with how often it runs; fusions stay whole.

    Raises:
      ConfigError: a loop's length depends on data and `assumed` does not say it.
    """
    return tuple(_walk(program, program.entry, 1.0, assumed, 0))


def collectives(program: Program, ran: Sequence[Executed]) -> tuple[Collective, ...]:
    """Returns the collectives of a call by kind and size, the most bytes first.

    One that is split into start and done, or over several fusions, is counted once: its parts share a channel.
    """
    seen: set[tuple[str, str]] = set()
    times: dict[tuple[str, int], float] = {}
    for each in ran:
        for _, instruction in program.parts(each.computation, each.instruction):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            identity = (kind, channel[1] if channel else instruction.name)
            if identity not in seen:
                seen.add(identity)
                key = (kind, _message_bytes(instruction))
                times[key] = times.get(key, 0) + each.times
    found = [Collective(kind, count, size) for (kind, size), count in times.items()]
    return tuple(sorted(found, key=lambda c: (-c.times * c.size_bytes, c.kind)))


def product_flops(program: Program, ran: Sequence[Executed]) -> dict[str, float]:
    """Returns the FLOPs of matrix products of a call by JAX operation, 2 per multiply-add; cuBLAS calls included."""
    flops: dict[str, float] = {}
    for each in ran:
        for where, inner in program.parts(each.computation, each.instruction):
            if inner.opcode in ("convolution", "dot") or "__cublas$" in inner.attributes:
                flops[inner.scope] = flops.get(inner.scope, 0) + each.times * _one_product(program, where, inner)
    return flops


def copies(program: Program, ran: Sequence[Executed], arrays: Iterable[tuple[int, ...]]) -> tuple[Executed, ...]:
    """Returns instructions that read one of these arrays in HBM and write it there again, without computing with it.

    A product reads its matrix in place; a slice of a stack, a change of layout and a plain copy do not. What goes to
    on-chip memory is a prefetch, and an update in place gives an array as large as its operand: neither is one of them.

    Args:
      arrays: shapes on one chip. Found in any order of axes, and with neighbouring axes merged.
    """
    known = frozenset(itertools.chain.from_iterable(map(_groupings, arrays)))
    return tuple(each for each in ran if _copied(program, each, known))


def _walk(program: Program, name: str, times: float, assumed: Assumed, depth: int) -> Iterator[Executed]:
    for instruction in program.computations[name]:
        yield Executed(instruction, name, times)
        match instruction.opcode:
            case "while":
                condition, body = _loop(instruction)
                trips = known_trips(instruction) or stated_trips(program.computations[condition])
                inner = depth + (trips is None)
                yield from _walk(program, body, times * (trips or _given(instruction, assumed, depth)), assumed, inner)
            case "conditional":
                yield from _branch(program, instruction, times, assumed, depth)
            case "call":
                yield from _walk(program, instruction.called[0], times, assumed, depth)


def _branch(program: Program, instruction: Instruction, times: float, assumed: Assumed, depth: int):
    branches = [tuple(_walk(program, branch, times, assumed, depth)) for branch in instruction.called]
    choose = max if assumed.dearest_branch else min
    return choose(branches, key=lambda branch: (sum(each.cycles for each in branch), len(branch)))


def known_trips(loop: Instruction) -> int | None:
    """The length of a loop as XLA for GPUs notes it; None where it knows none."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    return int(known[1]) if known else None


def stated_trips(condition: Sequence[Instruction]) -> int | None:
    """Returns the length of a loop that counts from 0 to a constant, as scans do; None where data decides."""
    constants = {i.name: int(i.attributes) for i in condition if i.opcode == "constant" and i.attributes.isdigit()}
    root = condition[-1]
    if root.opcode == "compare" and "direction=LT" in root.attributes:
        return constants.get(root.operands[-1])
    return max(constants.values()) if root.opcode == "fusion" and len(constants) == 1 else None


def _given(instruction: Instruction, assumed: Assumed, depth: int) -> float:
    trips = next(
        (assumed.within[name] for name in instruction.scope.split("/") if name in assumed.within), assumed.trips
    )
    if depth >= len(trips):
        raise ConfigError(
            f"loop '{instruction.name}' ({instruction.scope}) runs as often as its data says, and no number was given "
            f"for loops of depth {depth + 1}. Add one to Assumed.trips"
        )
    return trips[depth]


def _loop(instruction: Instruction) -> tuple[str, str]:
    condition, body = (re.search(rf"{role}={_NAME}", instruction.attributes) for role in ("condition", "body"))
    if condition is None or body is None:
        raise ConfigError(f"loop '{instruction.name}' names no condition and body: this text is of an unknown form")
    return condition[1], body[1]


def _message_bytes(instruction: Instruction) -> int:
    """What arrives: of a start, whose tuple holds the operand and flags too, the largest array; else all of them."""
    sizes = [array.size_bytes for array in instruction.results]
    return max(sizes) if instruction.opcode.endswith("-start") else sum(sizes)


def _copied(program: Program, each: Executed, known: Collection[tuple[int, ...]]) -> bool:
    instruction = each.instruction
    if instruction.opcode in _NOT_COPIES or instruction.opcode.removesuffix("-start") in COLLECTIVES:
        return False
    if any(inner.opcode in _COMPUTES for _, inner in program.parts(each.computation, instruction)):
        return False
    # The second array of a copy's start is its operand.
    results = instruction.results[:1] if instruction.opcode == "copy-start" else instruction.results
    written = [array for array in results if _plain(array.shape) in known and not array.on_chip]
    inputs = {i.name: i for i in program.computations[each.computation]}
    read = (array.elements for name in instruction.operands if name in inputs for array in inputs[name].results)
    largest = max(read, default=0)  # a broadcast reads nothing so large
    return any(largest >= array.elements for array in written)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes in order of size, without those of size 1."""
    return tuple(sorted(size for size in shape if size != 1))


def _groupings(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shape with neighbouring axes merged in every way, each as `_plain`."""
    shape = tuple(size for size in shape if size != 1)
    for cuts in itertools.product((False, True), repeat=max(0, len(shape) - 1)):
        merged = list(shape[:1])
        for size, cut in zip(shape[1:], cuts, strict=True):
            merged[-1:] = [merged[-1], size] if cut else [merged[-1] * size]
        yield _plain(tuple(merged))


def _one_product(program: Program, computation: str, product: Instruction) -> float:
    shapes = _shapes(program, computation)
    left, right = (shapes[name] for name in product.operands[:2])
    output = product.results[0].shape
    if product.opcode != "convolution":
        contracted = re.search(r"lhs_contracting_dim(?:ension)?s\"?[=:][{\[]([\d,\"]*)[}\]]", product.attributes)
        axes = [int(axis) for axis in contracted[1].replace('"', "").split(",") if axis] if contracted else []
        return 2 * math.prod(output) * math.prod(left[axis] for axis in axes)
    return _convolution_flops(product.attributes, left, right, output)


def _convolution_flops(attributes: str, left, right, output) -> float:
    """2 x outputs x input features x kernel positions that meet a value; on TPU every matrix product is one of these.

    Batch and extra axes become windows with padding or dilation, so that most kernel positions meet nothing.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if labels is None:
        return 0.0
    window = dict(re.findall(r"(\w+)=([\d_x-]+)", (re.search(r"window=\{([^}]*)\}", attributes) or ["", ""])[1]))
    flops = 2 * output[labels[3].index("b")] * output[labels[3].index("f")] * right[labels[2].index("i")]
    for place, axis in enumerate(sorted(set(labels[1]) - {"b", "f"})):
        sizes = (left[labels[1].index(axis)], right[labels[2].index(axis)], output[labels[3].index(axis)])
        flops *= _meetings(*sizes, {key: value.split("x")[place] for key, value in window.items()})
    return flops


def _meetings(values: int, kernel: int, outputs: int, window: Mapping[str, str]) -> int:
    """How many pairs of output and kernel position of one window axis meet a value, not padding or a dilation gap."""
    low = int(window.get("pad", "0_0").rpartition("_")[0])
    stride, apart, gap = (int(window.get(key, 1)) for key in ("stride", "rhs_dilate", "lhs_dilate"))
    positions = (o * stride + k * apart - low for o in range(outputs) for k in range(kernel))
    return sum(p % gap == 0 and 0 <= p < (values - 1) * gap + 1 for p in positions)


def _shapes(program: Program, computation: str) -> dict[str, tuple[int, ...]]:
    return {i.name: i.results[0].shape for i in program.computations[computation] if i.results}


def _instruction(name: str, rest: str) -> Instruction:
    result_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, _, tail = rest[result_end:].strip().partition("(")
    end = _closing("(" + tail, 0) - 1
    inside, attributes = tail[:end], tail[end + 1 :].lstrip(", ")
    cycles = _CYCLES.search(attributes)
    scope = re.search(r'op_name="([^"]*)"', attributes)
    return Instruction(
        name=name,
        opcode=opcode,
        results=_arrays(rest[:result_end]),
        operands=tuple(re.findall(_NAME, inside)),
        called=tuple(name for found in _CALLED.findall(attributes) for name in re.findall(_NAME, found)),
        scope=scope[1] if scope else "",
        cycles=int(cycles[1]) if cycles and int(cycles[1]) != UNKNOWN_CYCLES else None,
        attributes=inside if opcode in ("constant", "parameter") else attributes,
    )


@functools.lru_cache(maxsize=4096)
def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(size) for size in shape.split(",") if size), "S(1)" in layout)
        for dtype, shape, layout in _ARRAY.findall(text)
    )


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ConfigError(f"a line of the compiled program does not end: {text[:80]}")
