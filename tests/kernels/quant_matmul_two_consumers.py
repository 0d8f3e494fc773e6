"""Runs the GPU kernel for quantised weights in the interpreter with two consumers; prints a line of JSON a case.

In a process of its own, because XLA's pool of threads is as large as the environment said when JAX started:
`NPROC=8 python -m tests.kernels.quant_matmul_two_consumers`
"""

import json

import jax
import numpy as np

from kernels.pallas import compat
from kernels.pallas.quant_matmul import arg_specs, gpu, reference
from kernels.pallas.quant_matmul.gpu_tuning import Blocks
from kernels.pallas.quant_matmul.quantise import quantise_rows

ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}  # of a result, relative
SUMS = 1e-5  # float32 sums of products that add up to 1 or so, in any order

CASES: dict[str, arg_specs.Shape] = {
    "int4_group_64": arg_specs.Shape(tokens=9, inputs=384, scheme="int4", group=64),
    "fp8_rows": arg_specs.Shape(tokens=9, inputs=384, scheme="fp8", rows="fp8"),
}


def arguments(shape: arg_specs.Shape, seed: int):
    """Rows as they are multiplied, weight, scales of rows."""
    x_TD, weight = arg_specs.make(shape, seed)
    values, row_scales = (x_TD, None) if shape.rows is None else quantise_rows(x_TD, shape.rows)
    return values, weight, row_scales


def run(shape: arg_specs.Shape, args, blocks: Blocks) -> np.ndarray:
    """The kernel's answer, after a check that nothing raced."""
    interpret = compat.gpu_interpreter(detect_races=True)
    got = gpu.matmul(*args, out_dtype=shape.dtype, blocks=blocks, interpret=interpret)
    assert got.dtype == shape.dtype
    assert got.shape == (shape.tokens, shape.outputs)
    got = np.asarray(got, np.float64)
    assert not compat.gpu_races_found()
    return got


def main() -> None:
    """Every case, and how many of its results are wrong."""
    jax.config.update("jax_disable_most_optimizations", True)  # compiled to be run once
    for name, shape in CASES.items():
        values, weight, row_scales = args = arguments(shape, seed=8)
        got = run(shape, args, Blocks(tile_tokens=8, stages=2, splits=2, consumers=2))
        want = reference.matmul(values, weight.values, weight.scales, row_scales)
        wrong = ~np.isclose(got, want, rtol=ROUNDING[shape.dtype], atol=SUMS)
        print(json.dumps({"case": name, "wrong": int(wrong.sum())}), flush=True)


if __name__ == "__main__":
    main()
