"""The TPU kernel run on a CPU, step by step: for tests of whatever is built on it. Slow."""

import functools

from kernels.pallas import compat
from kernels.pallas.paged_attention import tpu

decode_attention = functools.partial(tpu.decode_attention, interpret=compat.tpu_interpreter())
prefill_attention = functools.partial(tpu.prefill_attention, interpret=compat.tpu_interpreter())
