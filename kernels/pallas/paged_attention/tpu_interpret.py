"""The TPU kernel run on a CPU, step by step: for tests of whatever is built on it. Slow."""

import functools

from kernels.pallas import compat
from kernels.pallas.paged_attention import tpu

decode_attention = functools.partial(tpu.decode_attention, interpret=compat.tpu_interpreter())
prefill_attention = functools.partial(tpu.prefill_attention, interpret=compat.tpu_interpreter())
write_kv = functools.partial(tpu.write_kv, interpret=compat.tpu_interpreter())
decode_work, prefill_work, why_not = tpu.decode_work, tpu.prefill_work, tpu.why_not

prefill_tiles = tpu.prefill_tiles


def pool_order(dtype) -> None:
    """Arrays of a CPU lie in one order only; see `api.pool_order`."""
