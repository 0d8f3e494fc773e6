"""Tables of measured operations in the aiconfigurator format: one reader a table.

Parquet files CHIP__*__SOFTWARE__NAME_perf.parquet; latencies in ms, sizes of messages in elements. Rows that were
measured twice count once, with their median. Next: `measured`, which says what a row becomes.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoserve.roofline.measured import ACTIVATION_BYTES, Heads, Measured, attention_op
from nanoserve.roofline.op import Op
from nanoserve.specs.chips import BYTES_PER_ELEMENT, ChipSpec
from nanoserve.specs.errors import ConfigError, nearest

if TYPE_CHECKING:
    import polars as pl

STACK_PREFIX: Mapping[str, str] = {
    "vllm": "vllm",
    "vllm_sync": "vllm",
    "tensorrt_llm": "trtllm",
    "trtllm_serve": "trtllm",
    "sglang": "sglang",
}
_MS = 1e-3
_NEEDED = ("latency",)


def read(path: Path, chip: ChipSpec, stack: str) -> list[Measured]:
    """Returns what a folder of tables measured on a chip with a stack's kernels.

    Raises:
      ConfigError: there is no such folder, nothing of the chip and stack in it, or a table lacks a column.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder. Name one that holds tables CHIP__*__SOFTWARE__NAME_perf.parquet")
    found = [
        group for name, table in TABLES.items() for group in table.read(path, name, chip.name, stack) if len(group)
    ]
    if not found:
        there = sorted({file.name.split("__")[0] for file in path.glob("*__*_perf.parquet")})
        raise ConfigError(f"{path}: no table of {chip.name} and {stack} in it.{nearest(chip.name, there)}")
    return found


@dataclasses.dataclass(frozen=True)
class Table:
    """How one table is read: its key columns, whether any stack's will do, and what makes groups of its rows."""

    keys: tuple[str, ...]
    groups: Callable[["pl.DataFrame", str], Iterator[Measured]]
    any_stack: bool = False

    def read(self, folder: Path, name: str, chip: str, stack: str) -> Iterator[Measured]:
        """Yields the groups of the table's newest version; nothing where there is no such table."""
        software = "*" if self.any_stack else f"{STACK_PREFIX.get(stack, stack)}-*"
        files = sorted(folder.glob(f"{chip}__*__{software}__{name}_perf.parquet"))
        if files:
            yield from self.groups(_frame(files[-1], self.keys), files[-1].name.removesuffix("_perf.parquet"))


def _frame(path: Path, keys: Sequence[str]) -> "pl.DataFrame":
    """A table with one row for each combination of its keys."""
    import polars as pl

    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    missing = [name for name in (*keys, *_NEEDED) if name not in frame.columns]
    if missing:
        raise ConfigError(f"{path}: has no column '{missing[0]}'.{nearest(missing[0], frame.columns)}")
    return frame.group_by(keys).agg(pl.col("latency").median()).sort(keys)


def _columns(frame: "pl.DataFrame", *names: str) -> dict[str, np.ndarray]:
    return {name: frame[name].to_numpy().astype(np.float64) for name in names}


def _seconds(frame: "pl.DataFrame") -> np.ndarray:
    return frame["latency"].to_numpy() * _MS


# ---- matrix products ----

_PRODUCT_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}  # fp8_block: measured with its launches from Python, 50 us each


def _products(frame: "pl.DataFrame", file: str) -> Iterator[Measured]:
    for name, dtype in _PRODUCT_DTYPES.items():
        rows = frame.filter(frame["gemm_dtype"] == name)
        at = _columns(rows, "m", "n", "k")
        m, n, k = at.values()
        yield Measured(
            kind="matmul",
            variant=dtype,
            op=Op(
                name="product",
                kind="matmul",
                compute=dtype,
                flops=2 * m * n * k,
                weight_bytes=n * k * BYTES_PER_ELEMENT[dtype],
                activation_bytes=m * (n + k) * ACTIVATION_BYTES,
                launches=1,
                rows=k,  # pyright: ignore[reportArgumentType]  # an array, as all of a vectorised Op
                columns=n,  # pyright: ignore[reportArgumentType]
            ),
            seconds=_seconds(rows),
            shape={"n": n, "k": k},
            keys=at,
            size=m,
            size_name="tokens",
            rows=f"{file}, {name}",
        )


# ---- attention ----

_KV_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
_HEADS = ("num_heads", "num_key_value_heads", "head_dim")
_ATTENTION = ("kv_cache_dtype", "head_dim", "window_size", "batch_size", "num_heads", "num_key_value_heads")


def _decode_attention(frame: "pl.DataFrame", file: str) -> Iterator[Measured]:
    frame = frame.filter(frame["window_size"] == 0)
    for name, dtype in _KV_DTYPES.items():
        rows = frame.filter(frame["kv_cache_dtype"] == name)
        at = _columns(rows, *_HEADS, "batch_size", "step")
        queries, kv_heads, size, batch, past = at.values()
        attended = batch * (past + 1)
        op = attention_op("attention_decode", dtype, Heads(queries, kv_heads, size), batch, batch, attended, attended)
        yield _attention(op, dtype, rows, at, size=op.kv_read_bytes, size_name="KV bytes", file=f"{file}, {name} KV")


def _prefill_attention(frame: "pl.DataFrame", file: str) -> Iterator[Measured]:
    frame = frame.filter((frame["window_size"] == 0) & (frame["step"] == 0))
    for name, dtype in _KV_DTYPES.items():
        rows = frame.filter(frame["kv_cache_dtype"] == name)
        at = _columns(rows, *_HEADS, "batch_size", "isl")
        queries, kv_heads, size, batch, chunk = at.values()
        tokens, pairs = batch * chunk, batch * chunk * (chunk + 1) / 2
        op = attention_op("attention_prefill", dtype, Heads(queries, kv_heads, size), batch, tokens, pairs, tokens)
        yield _attention(op, dtype, rows, at, size=chunk, size_name="prompt tokens", file=f"{file}, {name} KV")


def _attention(
    op: Op, dtype: str, rows: "pl.DataFrame", at: dict[str, np.ndarray], *, size: Any, size_name: str, file: str
) -> Measured:
    return Measured(
        kind=op.kind,
        variant=dtype,
        op=op,
        seconds=_seconds(rows),
        shape={name: at[name] for name in _HEADS},
        keys=at,
        size=size,
        size_name=size_name,
        rows=file,
    )


# ---- routed experts ----

_ROUTING = "balanced"  # a kernel's constants; how uneven a router is belongs to `moe`
_EXPERT_DTYPES = {"bfloat16": "bf16", "fp8_block": "fp8"}  # published fp8 checkpoints of experts have block scales


def _experts(frame: "pl.DataFrame", file: str) -> Iterator[Measured]:
    frame = frame.filter((frame["distribution"] == _ROUTING) & (frame["moe_ep_size"] == 1))
    for name, dtype in _EXPERT_DTYPES.items():
        rows = frame.filter(frame["moe_dtype"] == name)
        at = _columns(rows, "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size")
        tokens, hidden, ffn, top_k, experts, ways = at.values()
        ffn = ffn / ways
        pairs, matrices = tokens * top_k, 3 * hidden * ffn
        yield Measured(
            kind="grouped_matmul",
            variant=dtype,
            op=Op(
                name="experts",
                kind="grouped_matmul",
                compute=dtype,
                flops=2 * pairs * matrices,
                weight_bytes=np.minimum(experts, pairs) * matrices * BYTES_PER_ELEMENT[dtype],
                activation_bytes=pairs * (2 * hidden + 3 * ffn) * ACTIVATION_BYTES,
                launches=2,  # up and gate as one, and down
                rows=hidden,  # pyright: ignore[reportArgumentType]
                columns=ffn,  # pyright: ignore[reportArgumentType]
            ),
            seconds=_seconds(rows),
            shape={key: at[key] for key in ("hidden_size", "inter_size", "topk", "num_experts")},
            keys=at,
            size=tokens,
            size_name="tokens",
            rows=f"{file}, {name}, {_ROUTING} routing, one expert group",
        )


# ---- collectives ----

_LONGEST_BYTES = 1 << 27  # the sums of a step of 8,192 tokens of a 70B model
_HALF_BYTES = 2


def _custom_all_reduce(frame: "pl.DataFrame", file: str) -> Iterator[Measured]:
    graph = [name for name in frame["backend"].unique() if name.endswith("graph")]  # eager adds the host's launches
    yield from _all_reduce(frame.filter(frame["backend"].is_in(graph)), file, "all_reduce")


def _nccl(frame: "pl.DataFrame", file: str) -> Iterator[Measured]:
    rows = frame.filter((frame["op_name"] == "all_reduce") & (frame["nccl_dtype"] == "half"))
    yield from _all_reduce(rows, file, "all_reduce_nccl")


def _all_reduce(frame: "pl.DataFrame", file: str, kind: str) -> Iterator[Measured]:
    """All-reduces of 16-bit numbers, by GPUs."""
    for ways in sorted(frame["num_gpus"].unique()):
        rows = frame.filter((frame["num_gpus"] == ways) & (frame["message_size"] * _HALF_BYTES <= _LONGEST_BYTES))
        at = _columns(rows, "message_size")
        message_bytes = at["message_size"] * _HALF_BYTES
        yield Measured(
            kind=kind,
            variant=str(ways),
            op=Op(
                name="all_reduce",
                kind="collective",
                link_bytes=2 * (ways - 1) / ways * message_bytes,
                launches=np.ones(len(rows)),
                ways=ways,
            ),
            seconds=_seconds(rows),
            shape=at,
            keys=at,
            size=message_bytes,
            size_name="message bytes",
            rows=f"{file}, {ways} GPUs, up to 128 MiB",
        )


TABLES: Mapping[str, Table] = {
    "gemm": Table(("gemm_dtype", "m", "n", "k"), _products),
    "generation_attention": Table((*_ATTENTION, "step"), _decode_attention),
    "context_attention": Table((*_ATTENTION, "step", "isl"), _prefill_attention),
    "moe": Table(
        (
            *("moe_dtype", "distribution", "hidden_size", "inter_size", "topk", "num_experts"),
            *("moe_tp_size", "moe_ep_size", "num_tokens"),
        ),
        _experts,
    ),
    "custom_allreduce": Table(("backend", "num_gpus", "message_size"), _custom_all_reduce),
    "nccl": Table(("op_name", "nccl_dtype", "num_gpus", "message_size"), _nccl, any_stack=True),
}
