"""The products that are measured: which matrix of which model, how it is stored, and how many rows it multiplies.

A matrix's cases follow one another, so that its weights are made once. Next: `matmul_calls`, `matmul` (the part).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from experiments.bench.parts import Case
from experiments.bench.parts.step_cases import EIGHT, SEVENTY, SHORT, TOY, toy_model
from kernels.pallas.quant_matmul import schemes
from nanoserve.roofline.matrices import layer_matrices
from nanoserve.specs.model_registry import model

ROWS = (1, 8, 32, 128, 512, 2048)
USUAL_ROWS = (1, 32, 2048)
USUAL = {(SEVENTY, "int4", "gate_up"), (SEVENTY, "int4", "down"), (EIGHT, "int8", "gate_up"), (EIGHT, "fp8", "gate_up")}
SCHEMES = {SEVENTY: ("int4", "int8"), EIGHT: ("int4", "int8", "fp8"), TOY: ("int4", "fp8")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatmulCase(Case):
    """One product [T, D] x [D, F].

    Attributes:
      model, matrix: whose it is. scheme: how its weights are stored.
      rows, inputs, outputs: T, D and F.
    """

    model: str
    matrix: str
    scheme: str
    rows: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        """2 per multiply-add."""
        return 2 * self.rows * self.inputs * self.outputs

    def useful_bytes(self, bytes_per_weight: float) -> int:
        """Weights and their scales read once, activations of two bytes in and out."""
        return round(self.inputs * self.outputs * bytes_per_weight) + 2 * self.rows * (self.inputs + self.outputs)

    @property
    def weight_bytes(self) -> int:
        """Weights and their scales, as stored."""
        return round(self.inputs * self.outputs * self.bytes_per_weight)

    @property
    def bytes_per_weight(self) -> float:
        """As stored, its share of a scale included."""
        return schemes.bytes_per_weight(self.scheme, self.inputs)


def cases(toy: bool) -> Sequence[MatmulCase]:
    """The products of each matrix, whose weights are made once for all of its rows."""
    if toy:
        return list(_of_matrix(TOY, "int4", "gate_up", (5,))) + list(_of_matrix(TOY, "fp8", "down", (5,)))
    named = [(name, scheme, matrix) for name in (SEVENTY, EIGHT) for scheme in SCHEMES[name] for matrix in _sizes(name)]
    return [case for each in sorted(named, key=lambda each: each not in USUAL) for case in _of_matrix(*each, ROWS)]


def _sizes(name: str) -> Mapping[str, tuple[int, int]]:
    """D and F of a model's matrices on one chip."""
    spec = toy_model() if name == TOY else model(name)
    return {matrix.name: (matrix.rows, matrix.columns) for matrix in layer_matrices(spec)}


def _of_matrix(name: str, scheme: str, matrix: str, rows: Sequence[int]) -> Iterator[MatmulCase]:
    inputs, outputs = _sizes(name)[matrix]
    for count in rows:
        usual = name == TOY or ((name, scheme, matrix) in USUAL and count in USUAL_ROWS)
        yield MatmulCase(
            name=f"{SHORT[name]}_{matrix}_{scheme}_t{count}", extra=not usual, model=name, matrix=matrix,
            scheme=scheme, rows=count, inputs=inputs, outputs=outputs,
        )  # fmt: skip
