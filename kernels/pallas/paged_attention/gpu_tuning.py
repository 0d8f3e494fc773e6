"""Block sizes of the GPU kernels: a table of what to use, and the arithmetic that fits it to a call.

`tuning/gpu.json` has one entry for each kernel, head size and size of a page's elements, written by
`experiments/tune.py`. An entry says where its numbers come from: `static` is what the compiler takes and a cost model
prefers (`gpu_search`), `measured` a clock. Sizes change how a result is summed, never what is summed.
"""

import dataclasses
import functools
import json
from importlib import resources
from typing import Any

from nanoserve.specs.errors import ConfigError

THREAD_BLOCKS = 132  # one for each SM of an H100 SXM; where there are fewer SMs, they run one after the other
ITEMS_PER_BLOCK = 4  # of decode: few enough to be long, enough to be spread evenly
USUAL_SPLITS = 16  # most of a row, unless every thread block would not have an item then; XLA joins them in 2 kernels
TABLE = resources.files(__package__).joinpath("tuning", "gpu.json")


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

    block_tokens: int = 64
    stages: int = 2
    converted: int = 2
    splits: int = 1
    thread_blocks: int = THREAD_BLOCKS


@functools.cache
def entries() -> dict[tuple[str, int, int], dict[str, Any]]:
    """Entries of the table that ships with the kernels, by kernel, head size and bytes of an element."""
    table = json.loads(TABLE.read_text())
    return {(entry["kind"], entry["head_size"], entry["kv_bytes"]): entry for entry in table["entries"]}


def decode_blocks(kv_pages, rows: int, table_pages: int) -> Blocks:
    """Sizes for `decode_attention` of `rows` sequences; `table_pages` is the length of a row of the page table."""
    _, page_tokens, K, _, _ = kv_pages.shape
    blocks = _blocks("decode", kv_pages)
    wanted = -(-ITEMS_PER_BLOCK * THREAD_BLOCKS // (rows * K))
    most = max(USUAL_SPLITS, THREAD_BLOCKS // (rows * K))
    splits = max(1, min(wanted, most, table_pages * page_tokens // blocks.block_tokens))
    return dataclasses.replace(blocks, splits=splits)


def prefill_blocks(kv_pages) -> Blocks:
    """Sizes for `prefill_attention`."""
    return _blocks("prefill", kv_pages)


def _blocks(kind: str, kv_pages) -> Blocks:
    """The entry for pages like `kv_pages`."""
    key = kind, kv_pages.shape[4], kv_pages.dtype.itemsize
    if key not in entries():
        raise ConfigError(f"the GPU kernel for {kind} has no block sizes for {kv_pages.shape} of {kv_pages.dtype}")
    entry = entries()[key]
    return Blocks(block_tokens=entry["block_tokens"], stages=entry["stages"], converted=entry["converted"])
