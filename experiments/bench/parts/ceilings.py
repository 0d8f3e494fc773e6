"""What the device does at best: the ceilings that every other part is held against.

A copy of memory (bytes read plus bytes written), a sum over memory (bytes read), and square matrix products with random
operands: of bf16, and of float8_e4m3fn into bf16. A device without units for 8 bits multiplies them all the same, in
16 or 32. Each is the best of several ways.

Next: `attention_timing`, which takes the time.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from experiments.bench.attention_timing import Effort, Timeable, Timed, copy_ways, fastest_s, matmul, read, take_turns
from experiments.bench.parts import Case, Context
from experiments.bench.results_file import Record
from nanoserve.report.units import share, short
from nanoserve.specs.chips import ChipSpec

NAME = "ceilings"
COPY, READ, BF16, FP8 = "copy", "read", "matmul_bf16", "matmul_fp8"
_BYTES, _FLOPS = "bytes", "FLOP"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceiling(Case):
    """One ceiling.

    Attributes:
      unit: what its rate counts.
    """

    unit: str


@dataclasses.dataclass(frozen=True)
class _How:
    """How a ceiling is measured.

    Attributes:
      unit: as of `Ceiling`. counts: what one call is counted as, in words.
      amount: what one call is counted as. ways: ways to do it.
      limit: what the datasheet says.
    """

    unit: str
    counts: str
    amount: Callable[[Effort], float]
    ways: Callable[[Effort], Mapping[str, Timeable]]
    limit: Callable[[ChipSpec], float]


def _product(dtype: str) -> Callable[[Effort], Mapping[str, Timeable]]:
    """The right operand with rows or columns first, as XLA compiles it, and on GPUs by cuBLAS, which steps use."""

    def ways(effort: Effort) -> Mapping[str, Timeable]:
        import jax

        from kernels.pallas import compat

        compilers = {"xla": {}, "as_in_steps": compat.compiler_options(jax.devices()[0])}
        return {
            f"{name}{'_transposed' if transposed else ''}": matmul(
                effort.matmul_size, dtype, transposed=transposed, options=options
            )
            for name, options in compilers.items()
            for transposed in (False, True)
            if name == "xla" or options
        }

    return ways


_CEILINGS: Mapping[str, _How] = {
    COPY: _How(
        _BYTES,
        "bytes read plus bytes written",
        lambda effort: 2 * effort.copy_bytes,
        lambda effort: copy_ways(effort.copy_bytes),
        lambda chip: chip.hbm_bytes_per_s,
    ),
    READ: _How(
        _BYTES,
        "bytes read, of numbers that are added up",
        lambda effort: effort.copy_bytes,
        lambda effort: {"xla_sum": read(effort.copy_bytes)},
        lambda chip: chip.hbm_bytes_per_s,
    ),
    BF16: _How(
        _FLOPS,
        "2 n^3 of bf16 operands",
        lambda effort: 2 * effort.matmul_size**3,
        _product("bfloat16"),
        lambda chip: chip.peak("bf16"),
    ),
    FP8: _How(
        _FLOPS,
        "2 n^3 of float8_e4m3fn operands, the result in bf16",
        lambda effort: 2 * effort.matmul_size**3,
        _product("float8_e4m3fn"),
        lambda chip: chip.peak("fp8"),
    ),
}


def cases(toy: bool) -> Sequence[Ceiling]:
    """Every ceiling; the effort says how large its arrays are."""
    return [Ceiling(name=name, unit=how.unit) for name, how in _CEILINGS.items()]


def measure(case: Ceiling, context: Context) -> Record:
    """The best way's rate, and every way's times.

    Raises:
      Exception: what the last way raised, where none could be run.
    """
    how = _CEILINGS[case.name]
    timed = take_turns(how.ways(context.effort), context.effort, context.clock)
    amount = how.amount(context.effort)
    rate_per_s = amount / fastest_s(timed)
    return {
        "counts": how.counts,
        "amount": amount,
        "rate_per_s": rate_per_s,
        "datasheet_per_s": how.limit(context.chip),
        "datasheet_fraction": rate_per_s / how.limit(context.chip),
        "ways": {name: way.record() for name, way in timed.items() if isinstance(way, Timed)},
    }


def columns(record: Record) -> Mapping[str, str]:
    """The cells of a line."""
    fastest = min(record["ways"], key=lambda name: record["ways"][name]["median_s"])
    return {
        "rate": f"{short(record['rate_per_s'])}{'B' if record['unit'] == _BYTES else record['unit']}/s",
        "of the datasheet": share(record["datasheet_fraction"]),
        "best way": fastest,
    }
