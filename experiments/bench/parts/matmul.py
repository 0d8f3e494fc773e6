"""Products with quantised weights as one chip has them, ours beside what XLA makes of the same numbers.

A program multiplies the same activations by one layer of a stack after the other, which together are larger than any
cache: weights come from memory, as in a step. `ours` is what `auto` takes; beside it are the plain XLA path of the same
contract (`xla`), XLA's own product with weights made bf16 first (`dequantised`), and a product with weights that lie in
memory as bf16 (`bf16`): what there would be without quantisation. Each is compared with a float32 product of exactly
dequantised weights before it is timed.

Next: `matmul_cases`, `matmul_calls` (arrays and programs), `kernels.pallas.quant_matmul.api`.
"""

from collections.abc import Mapping, Sequence

from experiments.bench.attention_results import times_as_fast
from experiments.bench.parts import Context, matmul_cases
from experiments.bench.parts.matmul_cases import MatmulCase
from experiments.bench.results_file import FAILED, Record
from nanoserve.report.units import MISSING, share, short, significant, time

NAME = "matmul"


def cases(toy: bool) -> Sequence[MatmulCase]:
    """The products."""
    return matmul_cases.cases(toy)


def measure(case: MatmulCase, context: Context) -> Record:
    """The time of each contender, their errors, and what `auto` takes.

    Raises:
      Exception: whatever stands in the way of measuring at all; what a peer raises is in the record.
    """
    from experiments.bench.parts.matmul_calls import measure_product

    return measure_product(case, context)


def columns(record: Record) -> Mapping[str, str]:
    """The cells of a line."""
    ratios = [f"{significant(ratio)} x {peer}" for peer, ratio in times_as_fast(record)]
    failed = [f"{peer} failed" for peer, beside in record["peers"].items() if beside["status"] == FAILED]
    return {
        "auto takes": record["implementation"],
        "a call": time(record["time"]["median_s"]),
        "B/s": short(record["bytes_per_s"]),
        "of copy": _share(record["copy_fraction"]),
        "FLOP/s": short(record["flops_per_s"]),
        "of bf16": _share(record["matmul_fraction"]),
        "ours is": ", ".join((*ratios, *failed)),
    }


def _share(part: float | None) -> str:
    return MISSING if part is None else share(part)
