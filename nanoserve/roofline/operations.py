"""The operations that a step is taken apart into, on both sides: what the model's scopes and the cost model call them.

A profile says how long kernels ran, and a compiled program says which `jax.named_scope` each of them came from; the
cost model prices operation classes (`op.Op`). Both are gathered here under one list of names, so that they can be laid
side by side. An instruction belongs to the innermost scope that the list knows; what the compiler fused belongs where
its matrix product is, else where its result is.

Invariant: every operation of the cost model and every instruction of a program belongs to exactly one entry.
Next: `profiled`, which adds up both sides.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping

from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.compiled import COLLECTIVES, Instruction, Program
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.op import Op
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import BoundTimes, op_times
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One entry of the list.

    Attributes:
      label: for people. scopes: of the model's code. priced: names of the cost model's operations.
    """

    label: str
    scopes: tuple[str, ...] = ()
    priced: tuple[str, ...] = ()


LINKS, COPIES, LOOPS, OTHER, GAP, HOST = "links", "copies", "loops", "other", "gap", "host"

OPERATIONS: Mapping[str, Operation] = {
    "embed": Operation("embedding", ("embed",), ("embed",)),
    "qkv": Operation("queries, keys, values", ("qkv",), ("qkv", "qkv_a", "q_b", "kv_b")),
    "attention_decode": Operation(
        "attention of decode rows", ("decode_attention", "decode_work"), ("attention_decode",)
    ),
    "attention_prefill": Operation(
        "attention of prompt chunks", ("prefill_attention", "prefill_work"), ("attention_prefill",)
    ),
    "out": Operation("attention output", ("out",), ("o",)),
    "gate_up": Operation("feed-forward, gate and up", ("gate_up",), ("gate_up", "shared_gate_up")),
    "down": Operation("feed-forward, down", ("down",), ("down", "shared_down")),
    "router": Operation("choice of experts", ("router", "route"), ("router",)),
    "experts": Operation("experts", ("experts_gate_up", "experts_down"), ("experts_gate_up", "experts_down")),
    "elementwise": Operation(
        "element-wise, KV write",
        ("norm", "rope", "write_kv", "activation", "residual", "attention", "mlp"),  # and what those two have besides
        ("elementwise",),
    ),
    "head": Operation("output head", ("head",), ("head",)),
    "sample": Operation("sampling", ("sample",), ("sample",)),
    LINKS: Operation("links between chips"),
    COPIES: Operation("copies of weights and pages", ("layer_weights",)),
    LOOPS: Operation("loops and branches"),
    OTHER: Operation("other"),
    GAP: Operation("waits between kernels"),
    HOST: Operation("host", (), ("host", "host_rows")),
}
"""In the order of a step. `links` are collectives; `copies` to `gap` have no price of their own: launches and what lies
between them are in the prices of the operations."""

_OF_SCOPE = {scope: name for name, operation in OPERATIONS.items() for scope in operation.scopes}
_OF_PRICED = {priced: name for name, operation in OPERATIONS.items() for priced in operation.priced}
_CONTROL = ("while", "conditional", "call")
_COPIES = ("copy", "copy-start", "copy-done")
_PRODUCTS = ("dot", "convolution", "custom-call")
_NOT_IN_KERNEL_NAMES = re.compile(r"\W")


def of_scope(path: str) -> str | None:
    """The operation of a path such as `jit(decode_step)/while/body/mlp/norm/mul`; None where it names no scope."""
    return next((_OF_SCOPE[part] for part in reversed(path.split("/")) if part in _OF_SCOPE), None)


def of_priced(op: Op) -> str:
    """The operation of one of the cost model's; what it knows by no name here is a collective, or `other`."""
    return _OF_PRICED.get(op.name, LINKS if op.kind == "collective" else OTHER)


def prices(
    model: ModelSpec, cluster: ClusterSpec, precision: Precision, counts: StepCounts, calibration: Calibration
) -> dict[str, BoundTimes]:
    """Returns the seconds of a plan by operation, and by what each waits for; those that it does not have are absent.

    The host has what it costs besides to call a plan's program once, whatever its steps.

    Args:
      model, cluster, precision, counts: as for `ops.step_ops`. calibration: the constants to price with.
    """
    priced: dict[str, BoundTimes] = {}
    for op in step_ops(model, cluster, precision, counts):
        times = op_times(op, cluster, calibration)
        if times.total or op.launches:
            name = of_priced(op)
            priced[name] = priced.get(name, BoundTimes()) + times
    priced[HOST] += BoundTimes(overhead=calibration.host_call_s)
    return priced


class Named:
    """A compiled program's instructions by name, each with its operation."""

    def __init__(self, program: Program):
        """Reads every computation that control flow reaches, and what is fused into its instructions."""
        self._operations: dict[str, str] = {}
        for name, operation in _operations(program, program.entry, None):
            self._operations.setdefault(name, operation)
        self._by_kernel = {as_kernel(name): operation for name, operation in self._operations.items()}

    def __contains__(self, instruction: str) -> bool:
        """Whether the program has an instruction of this name."""
        return instruction in self._operations

    def operation(self, instruction: str, kernel: str = "") -> str | None:
        """The operation of an instruction; of a kernel of that name, where the instruction only holds others.

        A recorded graph of kernels is one instruction, but its kernels keep the names that they were compiled with.
        """
        found = self._operations.get(instruction)
        if found in (None, LOOPS):
            return self._by_kernel.get(as_kernel(kernel), found)
        return found


def as_kernel(instruction: str) -> str:
    """An instruction's name as XLA for GPUs calls its kernel."""
    return _NOT_IN_KERNEL_NAMES.sub("_", instruction)


def _operations(program: Program, computation: str, around: str | None) -> Iterator[tuple[str, str]]:
    """Instructions of a computation and of those that it calls; `around` is the operation of the loop it is in.

    What is fused belongs with the whole, and a profiler may name it: the product inside a slice of a stack of weights.
    """
    for line in program.computations[computation]:
        if line.opcode not in _CONTROL:
            whole = _operation(program, computation, line, around)
            yield from ((part.name, whole) for _, part in program.parts(computation, line))
            continue
        yield line.name, LOOPS
        for called in line.called:
            yield from _operations(program, called, of_scope(line.scope) or around)


def _operation(program: Program, computation: str, line: Instruction, around: str | None) -> str:
    """That of the scope it has; where the compiler has lost it, that of the loop it is in."""
    parts = [part for _, part in program.parts(computation, line)]
    if any(part.opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES for part in parts):
        return LINKS
    products = [part for part in parts if part.opcode in _PRODUCTS]
    heroes = (of_scope(part.scope) for part in products)
    left_behind = _left_behind(program, computation, line) if products and not any(p.scope for p in products) else ()
    scopes = (of_scope(part.scope) for part in (line, *reversed(parts)))
    found = next(filter(None, itertools.chain(heroes, left_behind, scopes)), None) or around
    return found or (COPIES if line.opcode in _COPIES else OTHER)


def _left_behind(program: Program, computation: str, product: Instruction) -> Iterator[str | None]:
    """Operations that may be a product's whose scope is lost.

    Where XLA writes a product of one row anew, a change of shape in whoever uses it keeps the product's scope.
    """
    for line in program.computations[computation]:
        if product.name in line.operands:
            for _, part in program.parts(computation, line):
                if part.opcode not in _PRODUCTS and part.scope.endswith("/dot_general"):
                    yield of_scope(part.scope)
