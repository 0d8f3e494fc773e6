"""Block sizes of the TPU kernel: a table of what to aim at, and the arithmetic that fits it to a shape.

`tuning/tpu.json` says where its numbers come from: `static` is the compiler's own count of instructions, `measured` a
clock. Sizes change how a result is summed, never what is summed.
"""

import dataclasses
import functools
import json
from importlib import resources
from typing import Any

from kernels.pallas import compat

# Of the 16 MiB of VMEM that a kernel gets unless the compiler is told otherwise; scores take part of the rest.
BUFFER_BYTES = 4 * 2**20  # the two KV buffers
TILE_BYTES = 8 * 2**20  # queries, results and running sums of a tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Sizes of one call.

    Attributes:
      block_pages: pages copied and attended to at a time.
      tile_tokens: queries of a tile; 1 for decode.
      cores: cores that share the call.
    """

    block_pages: int
    tile_tokens: int = 1
    cores: int = 1


@functools.cache
def table() -> dict[str, Any]:
    """The table of block sizes that ships with the kernel."""
    return json.loads(resources.files(__package__).joinpath("tuning", "tpu.json").read_text())


def decode_blocks(kv_pages, table_pages: int) -> Blocks:
    """Sizes for `decode_attention`; `kv_pages` is [P, p, K, 2, h], `table_pages` the length of a page table row."""
    return Blocks(block_pages=_block_pages("decode", kv_pages, table_pages), cores=compat.tpu_cores())


def prefill_blocks(kv_pages, table_pages: int, groups: int, tokens: int) -> Blocks:
    """Sizes for `prefill_attention` of `tokens` queries with `groups` heads to a KV head."""
    heads, h = kv_pages.shape[2], max(kv_pages.shape[4], 128)
    row_bytes = heads * (4 * h * 4 + 4 * h + 2 * 4 * 128)  # queries and results twice each, running sums
    rows = min(table()["prefill"]["tile_rows"], TILE_BYTES // row_bytes)
    tile_tokens = min(max(8, rows // groups // 8 * 8), -(-tokens // 8) * 8)
    block_pages = _block_pages("prefill", kv_pages, table_pages)
    return Blocks(block_pages=block_pages, tile_tokens=tile_tokens, cores=compat.tpu_cores())


def _block_pages(kind: str, kv_pages, table_pages: int) -> int:
    """As many pages as the table asks for, the buffers hold, and a sequence can have; at least one."""
    _, page_tokens, heads, _, h = kv_pages.shape
    page_bytes = page_tokens * heads * 2 * max(h, 128) * kv_pages.dtype.itemsize
    wanted = table()[kind]["kv_tokens"] // page_tokens
    return max(1, min(wanted, BUFFER_BYTES // (2 * page_bytes), table_pages))
