"""The GPU kernel run on a CPU, step by step: for tests of whatever is built on it. Slow.

With one consumer: a warpgroup that waits may hold a thread of XLA's CPU pool, which has one per core, so on two cores
three warpgroups may leave none to run what they wait for. NPROC=8 in the environment makes the pool larger.
"""

from kernels.pallas import compat
from kernels.pallas.quant_matmul import gpu, gpu_tuning

why_not = gpu.why_not


def matmul(x_TD, weight, row_scales_T=None, *, layer=None, out_dtype):
    """See `gpu.matmul`."""
    blocks = gpu_tuning.blocks(x_TD, weight, consumers=1)
    interpret = compat.gpu_interpreter()
    return gpu.matmul(x_TD, weight, row_scales_T, layer=layer, out_dtype=out_dtype, blocks=blocks, interpret=interpret)
