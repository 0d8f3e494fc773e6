"""Shapes of paged attention that tests and benchmarks share, and arrays made from them.

A case is described by the lengths in it; `make_decode` and `make_prefill` scatter its sequences over the pool in random
order and poison everything that no sequence owns with NaN, so that each case also checks what must not be read.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Head counts, sizes and score options of one case.

    Attributes:
      kv_heads, groups, head_size: K, G and h.
      page_tokens: p.
      kv_lens: positions written of each row; 0 is a padding row.
      q_lens: new tokens of each row, for prefill; 0 is a padding row.
      window, soft_cap: as in `api`.
      dtype, kv_dtype: of queries and of pages, NumPy or ml_dtypes names.
    """

    kv_lens: tuple[int, ...]
    q_lens: tuple[int, ...] = ()
    kv_heads: int = 2
    groups: int = 4
    head_size: int = 64
    page_tokens: int = 16
    window: int | None = None
    soft_cap: float | None = None
    dtype: str = "float32"
    kv_dtype: str = "float32"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the entry points."""
        return {"scale": self.head_size**-0.5, "window": self.window, "soft_cap": self.soft_cap}


DECODE: dict[str, Shape] = {
    "edges_page_16": Shape(kv_lens=(0, 1, 15, 16, 17)),
    "edges_page_4": Shape(kv_lens=(0, 1, 3, 4, 5), page_tokens=4),
    "edges_page_64": Shape(kv_lens=(0, 1, 63, 64, 65), page_tokens=64),
    "several_chunks": Shape(kv_lens=(700, 5, 256, 257), kv_heads=1),
    "multi_head": Shape(kv_lens=(33, 7), groups=1, kv_heads=4),
    "group_3": Shape(kv_lens=(33, 7), groups=3, kv_heads=3),
    "group_16": Shape(kv_lens=(33, 7), groups=16, kv_heads=1, head_size=128),
    "head_96": Shape(kv_lens=(40, 18), head_size=96),
    "window": Shape(kv_lens=(0, 20, 19, 21, 600), window=20),
    "window_of_one": Shape(kv_lens=(1, 2, 300), window=1),
    "soft_cap": Shape(kv_lens=(50, 3), soft_cap=2.0),
    "bf16_kv": Shape(kv_lens=(300, 9), kv_dtype="bfloat16"),
    "bf16": Shape(kv_lens=(300, 9), dtype="bfloat16", kv_dtype="bfloat16"),
    "all_padding": Shape(kv_lens=(0, 0)),
}

PREFILL: dict[str, Shape] = {
    "whole_prompts": Shape(kv_lens=(1, 15, 16, 17), q_lens=(1, 15, 16, 17)),
    "after_a_past": Shape(kv_lens=(40, 33, 300), q_lens=(8, 1, 20)),
    "several_blocks": Shape(kv_lens=(300, 5, 140), q_lens=(300, 5, 129), kv_heads=1),
    "padding_rows": Shape(kv_lens=(9, 0, 0), q_lens=(9, 0, 0)),
    "page_4_group_3": Shape(kv_lens=(11, 6), q_lens=(5, 6), page_tokens=4, groups=3),
    "page_64_group_1": Shape(kv_lens=(65, 130), q_lens=(65, 2), page_tokens=64, groups=1),
    "group_16": Shape(kv_lens=(20, 4), q_lens=(7, 4), groups=16, kv_heads=1, head_size=128),
    "head_96": Shape(kv_lens=(20, 4), q_lens=(7, 4), head_size=96),
    "window": Shape(kv_lens=(30, 600), q_lens=(30, 140), window=20, kv_heads=1),
    "soft_cap": Shape(kv_lens=(30, 7), q_lens=(30, 7), soft_cap=2.0),
    "bf16_kv": Shape(kv_lens=(60, 9), q_lens=(60, 3), kv_dtype="bfloat16"),
    "bf16": Shape(kv_lens=(60, 9), q_lens=(60, 3), dtype="bfloat16", kv_dtype="bfloat16"),
}


def make_decode(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """Positional arguments of `decode_attention`, by name and in order."""
    rng = np.random.default_rng(seed)
    heads = shape.kv_heads * shape.groups
    kv_pages, page_table = _pool(shape, rng)
    q = rng.standard_normal((len(shape.kv_lens), heads, shape.head_size)).astype(_dtype(shape.dtype))
    return {
        "q": q,
        "kv_pages": kv_pages,
        "page_table": page_table,
        "kv_lens": np.array(shape.kv_lens, np.int32),
    }


def make_prefill(shape: Shape, seed: int, padding_tokens: int = 3) -> dict[str, np.ndarray]:
    """Positional arguments of `prefill_attention`, by name and in order, with NaN queries in the padding tokens."""
    rng = np.random.default_rng(seed)
    heads, tokens = shape.kv_heads * shape.groups, sum(shape.q_lens)
    kv_pages, page_table = _pool(shape, rng)
    q = rng.standard_normal((tokens + padding_tokens, heads, shape.head_size)).astype(_dtype(shape.dtype))
    q[tokens:] = np.nan
    return {
        "q": q,
        "kv_pages": kv_pages,
        "page_table": page_table,
        "kv_lens": np.array(shape.kv_lens, np.int32),
        "cu_q_lens": np.cumsum((0, *shape.q_lens)).astype(np.int32),
    }


def quantised(kv_pages: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """8-bit pages and their scales [P, p, K, 2], one for each key and each value.

    What was NaN has a NaN scale, and is itself NaN where `dtype` has one and the largest number where it has none.
    """
    import ml_dtypes

    kind = _dtype(dtype)
    largest = float(np.iinfo(kind).max if kind.kind == "i" else ml_dtypes.finfo(kind).max)
    scales = (np.max(np.abs(kv_pages.astype(np.float32)), axis=-1) / largest).astype(np.float32)
    quotients = kv_pages.astype(np.float32) / scales[..., None]
    if kind.kind == "i":
        quotients = np.nan_to_num(np.rint(quotients), nan=largest)
    return quotients.astype(kind), scales


def _pool(shape: Shape, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pages that hold NaN except where a sequence owns a position, and a table with wild entries past each length.

    A sequence owns what its first query can see onwards: positions before every window are NaN too.
    """
    page_tokens, inner = shape.page_tokens, (shape.kv_heads, 2, shape.head_size)
    needed = [-(-length // page_tokens) for length in shape.kv_lens]
    pages = sum(needed) + 3
    kv_pages = np.full((pages, page_tokens, *inner), np.nan, np.float32)
    page_table = rng.choice([-7, pages, 2**31 - 1], (len(needed), max(needed) + 1)).astype(np.int32)
    free = rng.permutation(pages)
    for row, (length, count) in enumerate(zip(shape.kv_lens, needed, strict=True)):
        page_table[row, :count], free = free[:count], free[count:]
        queries = shape.q_lens[row] if shape.q_lens else 1
        first = 0 if shape.window is None else max(0, length - queries - shape.window + 1)
        positions = np.arange(first, length)
        kv_pages[page_table[row, positions // page_tokens], positions % page_tokens] = rng.standard_normal(
            (len(positions), *inner)
        )
    return kv_pages.astype(_dtype(shape.kv_dtype)), page_table


def _dtype(name: str) -> np.dtype:
    import ml_dtypes  # registers bfloat16

    return np.dtype(getattr(ml_dtypes, name, name))
