"""Small tables in the format of the measured ones, with latencies that known constants give."""

import itertools
from pathlib import Path

import numpy as np

from nanoserve.roofline.efficiency import Kernel
from nanoserve.roofline.measured import Measured
from nanoserve.roofline.measured_tables import read
from nanoserve.roofline.timing import kernel_times
from nanoserve.specs.chip_registry import chip

H100 = chip("h100_sxm")
SHARED = Path(__file__).parents[3] / "shared" / "profiles" / "aiconfigurator_h100"
PRODUCT = Kernel(4e-6, 0.8, 0.7)
DECODE = Kernel(12e-6, 0.9, item_s=2e-8)
PREFILL = Kernel(13e-6, 0.4, 0.65, overlap=0.0)
SIZES = (2048, 3072, 4096, 5120, 6144, 7168, 8192)


def write(folder: Path, *names: str) -> Path:
    """Writes tables for an H100 and vLLM into a folder: `gemm`, `generation_attention`, ..."""
    for name in names:
        software = "nccl-2.0" if name == "nccl" else "vllm-0.0"
        _MAKERS[name]().write_parquet(folder / f"h100_sxm__x__{software}__{name}_perf.parquet")
    return folder


def group(folder: Path, kind: str, variant: str) -> Measured:
    """One group of a folder."""
    (found,) = (g for g in read(folder, H100, "vllm") if (g.kind, g.variant) == (kind, variant))
    return found


def timed(folder: Path, table: str, kind: str, kernel: Kernel, noise: float = 0.0) -> Measured:
    """A group whose seconds are what a kernel takes, times a factor within `noise` of 1."""
    import dataclasses

    measured = group(write(folder, table), kind, "bf16")
    factor = 1 + noise * np.random.default_rng(0).uniform(-1, 1, len(measured))
    seconds = np.asarray(kernel_times(measured.op, H100, kernel).total) * factor
    return dataclasses.replace(measured, seconds=seconds)


def _frame(columns: dict, fixed: dict):
    import polars as pl

    names, rows = list(columns), list(itertools.product(*columns.values()))
    data = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    data |= {name: [value] * len(rows) for name, value in fixed.items()}
    return pl.DataFrame(data | {"latency": [0.01 + 0.001 * i for i in range(len(rows))]})


def _gemm():
    return _frame({"gemm_dtype": ["bfloat16", "fp8"], "m": [1, 64, 512, 4096, 8192], "n": SIZES, "k": SIZES}, {})


_HEADS = {"num_heads": [8, 16, 32, 64], "num_key_value_heads": [1, 2, 4, 8], "head_dim": [128]}


def _generation():
    columns = {"kv_cache_dtype": ["bfloat16", "fp8"], **_HEADS, "batch_size": [1, 16, 128], "step": [127, 2047, 16383]}
    return _frame(columns, {"window_size": 0})


def _context():
    columns = {"kv_cache_dtype": ["bfloat16", "fp8"], **_HEADS, "batch_size": [1, 8], "isl": [128, 1024, 8192]}
    return _frame(columns, {"window_size": 0, "step": 0})


def _nccl():
    columns = {"nccl_dtype": ["half"], "num_gpus": [8], "message_size": [1 << i for i in range(8, 28)]}
    return _frame(columns, {"op_name": "all_reduce"})


def _custom():
    """Other latencies than NCCL's: two backends for each size."""
    columns = {"backend": ["vllm_graph", "vllm_eager"], "num_gpus": [8], "message_size": [1 << i for i in range(8, 28)]}
    return _frame(columns, {})


def _moe():
    columns = {
        **{"moe_dtype": ["bfloat16"], "hidden_size": [2048, 4096], "inter_size": [1024, 2048], "topk": [2, 8]},
        **{"num_experts": [8, 64, 128], "moe_tp_size": [1, 2], "num_tokens": [1, 64, 4096]},
    }
    return _frame(columns, {"distribution": "balanced", "moe_ep_size": 1})


_MAKERS = {
    "gemm": _gemm,
    "generation_attention": _generation,
    "context_attention": _context,
    "nccl": _nccl,
    "custom_allreduce": _custom,
    "moe": _moe,
}
