"""The TPU kernel run on a CPU, step by step: for tests of whatever is built on it. Slow."""

import functools

from kernels.pallas import compat
from kernels.pallas.quant_matmul import tpu

why_not = tpu.why_not
matmul = functools.partial(tpu.matmul, interpret=compat.tpu_interpreter())
