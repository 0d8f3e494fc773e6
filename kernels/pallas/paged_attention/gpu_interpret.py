"""The GPU kernels run on a CPU, step by step: for tests of whatever is built on them. Slow."""

import functools

from kernels.pallas import compat
from kernels.pallas.paged_attention import gpu

decode_attention = functools.partial(gpu.decode_attention, interpret=compat.gpu_interpreter())
prefill_attention = functools.partial(gpu.prefill_attention, interpret=compat.gpu_interpreter())
decode_work, prefill_work, write_kv, why_not = gpu.decode_work, gpu.prefill_work, gpu.write_kv, gpu.why_not


def pool_order(dtype) -> None:
    """Arrays of a CPU lie in one order only; see `api.pool_order`."""
