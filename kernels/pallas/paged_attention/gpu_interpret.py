"""The GPU kernels run on a CPU, step by step: for tests of whatever is built on them. Slow."""

import functools

from kernels.pallas import compat
from kernels.pallas.paged_attention import gpu

decode_attention = functools.partial(gpu.decode_attention, interpret=compat.gpu_interpreter())
prefill_attention = functools.partial(gpu.prefill_attention, interpret=compat.gpu_interpreter())
