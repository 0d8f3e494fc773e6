"""Block sizes of the GPU kernels, from what fits in the shared memory of an H100.

Nothing here has been timed: stages are as many as fit, and splits enough that every thread block has something to do.
Blocks of 128 positions are what to time first for prefill: with h = 128 they cost up to 9 registers a tile, spilled
outside the loop over blocks. Sizes change how a result is summed, never what is summed.
"""

import dataclasses

from kernels.pallas.paged_attention import gpu_prefill
from kernels.pallas.paged_attention.gpu_pipeline import ROWS

SHARED_BYTES = 227 * 1024  # of a thread block on Hopper
RESERVED_BYTES = 4 * 1024  # barriers, and scratch of reductions
THREAD_BLOCKS = 132  # one for each SM of an H100 SXM; where there are fewer SMs, they run one after the other
ITEMS_PER_BLOCK = 4  # of decode: few enough to be long, enough to be spread evenly
MOST_STAGES = 5
BLOCK_TOKENS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Sizes of one call.

    Attributes:
      block_tokens: KV positions attended to at a time; a multiple of 64.
      stages: blocks of K and V in shared memory, as they come from memory.
      converted: blocks of operands made of those, where pages have 8 bits.
      splits: most parts that a row is cut into, for decode.
      thread_blocks: thread blocks launched.
    """

    block_tokens: int = BLOCK_TOKENS
    stages: int = 2
    converted: int = 2
    splits: int = 1
    thread_blocks: int = THREAD_BLOCKS


def decode_blocks(kv_pages, rows: int, table_pages: int) -> Blocks:
    """Sizes for `decode_attention` of `rows` sequences; `table_pages` is the length of a row of the page table."""
    _, page_tokens, K, _, h = kv_pages.shape
    wanted = -(-ITEMS_PER_BLOCK * THREAD_BLOCKS // (rows * K))
    results_bytes = ROWS * h * 4
    splits = max(1, min(wanted, table_pages * page_tokens // BLOCK_TOKENS))
    return Blocks(splits=splits, **_stages(results_bytes, kv_pages))


def prefill_blocks(kv_pages) -> Blocks:
    """Sizes for `prefill_attention`."""
    h = kv_pages.shape[4]
    tile = ROWS * gpu_prefill.consumers(h, kv_pages.dtype.itemsize == 1)
    return Blocks(**_stages(tile * h * 2, kv_pages))


def _stages(other_bytes: int, kv_pages) -> dict[str, int]:
    """As many blocks of K and V as fit beside `other_bytes`, after two of operands if pages have 8 bits, or one."""
    element_bytes, block = kv_pages.dtype.itemsize, 2 * BLOCK_TOKENS * kv_pages.shape[4]
    free_bytes = SHARED_BYTES - RESERVED_BYTES - other_bytes
    if element_bytes == 2:
        return {"stages": min(MOST_STAGES, free_bytes // (2 * block))}
    converted = 2 if free_bytes >= 2 * 2 * block + 2 * block else 1
    return {"converted": converted, "stages": min(MOST_STAGES, (free_bytes - converted * 2 * block) // block)}
