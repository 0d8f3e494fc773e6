"""The GPU kernels run on a CPU, step by step: for tests of whatever is built on them. Slow."""

import dataclasses

from kernels.pallas import compat
from kernels.pallas.paged_attention import gpu, gpu_tuning

THREAD_BLOCKS = 2  # an interpreter takes them in turn, and one that has nothing to do takes as long as any
INTERPRET = compat.gpu_interpreter()


def decode_attention(q_BHh, kv_pages, page_table_BN, kv_lens_B, **options):
    """See `api.decode_attention`."""
    blocks = gpu_tuning.decode_blocks(kv_pages, q_BHh.shape[0], page_table_BN.shape[1])
    few = dataclasses.replace(blocks, thread_blocks=THREAD_BLOCKS)
    return gpu.decode_attention(q_BHh, kv_pages, page_table_BN, kv_lens_B, blocks=few, interpret=INTERPRET, **options)


def prefill_attention(q_THh, kv_pages, *rows, **options):
    """See `api.prefill_attention`."""
    few = dataclasses.replace(gpu_tuning.prefill_blocks(kv_pages), thread_blocks=THREAD_BLOCKS)
    return gpu.prefill_attention(q_THh, kv_pages, *rows, blocks=few, interpret=INTERPRET, **options)


decode_work, prefill_work, write_kv, why_not = gpu.decode_work, gpu.prefill_work, gpu.write_kv, gpu.why_not

prefill_tiles = gpu.prefill_tiles


def pool_order(dtype) -> None:
    """Arrays of a CPU lie in one order only; see `api.pool_order`."""
