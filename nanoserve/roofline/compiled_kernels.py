"""What a compiled program for a GPU runs, kernel by kernel: which operation each is of, how often, and what it moves.

Every instruction outside fusions that computes or copies is one launch, in a command buffer (CUDA graph) or not. A
launch costs one to three microseconds whatever it does, and a decode step has some hundreds, so their number is a
figure of its own.

Bytes are those that an instruction has to move at least. Of a Mosaic kernel only its results are counted: which part of
a pool or of a stack of weights it reads, its text does not say. Next: `compiled_launches` (what the host does),
`operations` (the names), `experiments/compile.py --kernels` (the table).
"""

import dataclasses
from collections.abc import Sequence

from nanoserve.roofline.compiled import Executed, Instruction, Program
from nanoserve.roofline.compiled_traffic import hbm_bytes
from nanoserve.roofline.operations import Named

_RUNS_NOTHING = (
    "parameter",
    "constant",
    "bitcast",
    "get-tuple-element",
    "tuple",
    "after-all",
    "while",
    "conditional",
    "call",
    "opt-barrier",
)
CUBLAS, MOSAIC = "product of cuBLAS", "Mosaic kernel"
COPY, ELEMENT_WISE = "copy", "element-wise"
_BY_TARGET = {"__cublas$": CUBLAS, "mosaic_gpu": MOSAIC, "DeviceRadixSort": "sort"}
_BY_OPCODE = {
    "dot": "product of XLA",
    "convolution": "product of XLA",
    "sort": "sort",
    "scatter": "scatter",
    "dynamic-update-slice": "update in place",
    "reduce": "reduction",
}
_COPIES = ("copy", "dynamic-slice", "slice", "reshape", "transpose", "broadcast", "pad", "gather", "concatenate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One instruction that launches a kernel or a copy.

    Attributes:
      name: of the instruction. kind: what it does, in two or three words. operation: a key of `operations.OPERATIONS`.
      times: how often a call runs it. moved_bytes: of one run, at least; of a Mosaic kernel what it writes.
      in_layers: it runs in a loop over layers.
    """

    name: str
    kind: str
    operation: str
    times: float
    moved_bytes: int
    in_layers: bool


def kernels(program: Program, ran: Sequence[Executed], calls: float = 1) -> tuple[Kernel, ...]:
    """Returns what a call launches, in the program's order.

    Args:
      program: a program for a GPU. ran: what `compiled.executed` says that a call of it runs.
      calls: steps in the call; what runs more often, in a loop that multiplies matrices, is in the layers.
    """
    named = Named(program)
    layers = {
        each.computation for each in ran if each.times > calls and _kind(program, each).startswith(("product", MOSAIC))
    }
    return tuple(
        Kernel(
            name=each.instruction.name,
            kind=(kind := _kind(program, each)),
            operation=named.operation(each.instruction.name) or "other",
            times=each.times,
            moved_bytes=_moved(program, each, kind),
            in_layers=each.computation in layers,
        )
        for each in ran
        if each.instruction.opcode not in _RUNS_NOTHING and not each.instruction.opcode.endswith(("-done", "-update"))
    )


def extra_bytes(found: Sequence[Kernel]) -> float:
    """Bytes of a call that neither products nor Mosaic kernels read: what is moved beside weights and KV."""
    return sum(each.times * each.moved_bytes for each in found if not each.kind.startswith("product"))


def _kind(program: Program, each: Executed) -> str:
    parts = [part for _, part in program.parts(each.computation, each.instruction)]
    for part in parts:
        if part.opcode == "custom-call":
            return next(
                (kind for target, kind in _BY_TARGET.items() if f'"{target}' in part.attributes), "library call"
            )
    opcodes = [part.opcode for part in parts]
    if found := next((kind for opcode, kind in _BY_OPCODE.items() if opcode in opcodes), None):
        return found
    free = (*_RUNS_NOTHING, "fusion", "fusion-start", "iota", "compare", "select", "add", "clamp")
    return COPY if _only_copies(each.instruction, opcodes, free) else ELEMENT_WISE


def _only_copies(instruction: Instruction, opcodes: Sequence[str], free: Sequence[str]) -> bool:
    """Whether it moves numbers and computes none, but for the places that they come from and go to."""
    works = [opcode.removesuffix("-start") for opcode in opcodes if opcode not in free]
    return instruction.opcode.startswith("copy") or (bool(works) and all(opcode in _COPIES for opcode in works))


def _moved(program: Program, each: Executed, kind: str) -> int:
    results = each.instruction.results
    if kind == MOSAIC:
        return sum(array.size_bytes for array in results)
    # The last result of a call of cuBLAS is room for it to work in, as much as it might want.
    room = results[-1].size_bytes if kind == CUBLAS and len(results) > 1 and results[-1].dtype == "s8" else 0
    return hbm_bytes(program, each.computation, each.instruction) - room
