"""Operations that we measured ourselves: the results of `experiments/bench/attention.py`.

Next: `measured`, which says what a row becomes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanoserve.roofline.measured import Heads, Measured, attention_op
from nanoserve.roofline.op import OpKind
from nanoserve.specs.chips import BYTES_PER_ELEMENT, ChipSpec
from nanoserve.specs.errors import ConfigError


def read_benchmark(path: Path, chip: ChipSpec) -> Iterator[Measured]:
    """Yields the results that were measured on this chip and whose times count.

    Raises:
      ConfigError: the file is not one of results.
    """
    try:
        results = json.loads(path.read_text())
        runs, shapes = results["runs"], results["shapes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not a file of results of experiments/bench/attention.py ({error!r})") from error
    here = [
        shape
        for shape in shapes.values()
        if shape["status"] == "measured" and _counts(runs[shape["run"]], chip) and shape["kv"] in BYTES_PER_ELEMENT
    ]
    kinds: tuple[tuple[str, OpKind], ...] = (("decode", "attention_decode"), ("prefill", "attention_prefill"))
    for name, kind in kinds:
        for dtype in sorted({shape["kv"] for shape in here if shape["kind"] == name}):
            yield _group(kind, dtype, [s for s in here if (s["kind"], s["kv"]) == (name, dtype)], path)


def _counts(run: Mapping[str, Any], chip: ChipSpec) -> bool:
    return run["absolute_times_count"] and run["device"].strip().lower() in chip.device_kinds


def _group(kind: OpKind, dtype: str, shapes: list[Mapping[str, Any]], path: Path) -> Measured:
    names = ("heads", "kv_heads", "head_size", "rows", "new_tokens", "kv_tokens", "flops")
    at = {name: np.array([shape[name] for shape in shapes], dtype=np.float64) for name in names}
    queries, kv_heads, size, rows, tokens, read, flops = at.values()
    op = attention_op(kind, dtype, Heads(queries, kv_heads, size), rows, tokens, flops / (4 * queries * size), read)
    return Measured(
        kind=kind,
        variant=dtype,
        op=op,
        seconds=np.array([shape["time"]["median_s"] for shape in shapes]),
        shape={name: at[name] for name in names[:3]},
        keys=at,
        size=op.kv_read_bytes if kind == "attention_decode" else tokens,
        size_name="KV bytes" if kind == "attention_decode" else "new tokens",
        rows=f"{path.name}, {dtype} KV",
    )
