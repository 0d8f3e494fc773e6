"""Measured tables: what their rows mean, and what is said of those that cannot be read."""

import numpy as np
import pytest

from nanoserve.roofline.measured_tables import read
from nanoserve.roofline.ops import step_ops
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.errors import ConfigError
from tests.roofline import factories as make
from tests.roofline import tables

pl = pytest.importorskip("polars")


def rows_where(group, **values) -> np.ndarray:
    return np.flatnonzero(np.all([group.keys[name] == value for name, value in values.items()], axis=0))


def test_latencies_are_milliseconds_and_messages_are_elements(tmp_path):
    folder = tables.write(tmp_path, "gemm", "nccl")
    assert tables.group(folder, "matmul", "bf16").seconds.min() == pytest.approx(1e-5)
    nccl = tables.group(folder, "all_reduce_nccl", "8")
    assert nccl.size.min() == 2 * 256 and nccl.op.link_bytes.min() == 2 * 7 / 8 * 512


def test_rows_that_were_measured_twice_count_once_with_their_median(tmp_path):
    folder = tables.write(tmp_path, "gemm")
    path = next(folder.glob("*gemm*"))
    table = pl.read_parquet(path)
    slow = [table.with_columns(latency=pl.col("latency") * factor) for factor in (1, 3, 5)]
    pl.concat(slow).write_parquet(path)
    again = tables.group(folder, "matmul", "bf16")
    assert len(again) == table.filter(pl.col("gemm_dtype") == "bfloat16").height
    assert again.seconds.min() == pytest.approx(3e-5)


def test_a_product_counts_what_a_step_counts_for_it(tmp_path):
    """The `o` product of a model with square attention is a row of the table."""
    group = tables.group(tables.write(tmp_path, "gemm"), "matmul", "bf16")
    (row,) = rows_where(group, m=64, n=8192, k=8192)
    ops = step_ops(make.model("llama-3.1-70b"), make.cluster(), make.BF16, make.decode_counts(64, 100))
    (o,) = (op for op in ops if op.name == "o")
    for field in ("flops", "weight_bytes", "activation_bytes"):
        assert getattr(o, field) / o.launches == pytest.approx(getattr(group.op, field)[row]), field
    assert (o.rows, o.columns) == (group.op.rows[row], group.op.columns[row])


@pytest.mark.parametrize(("precision", "variant"), [(make.BF16, "bf16"), (make.FP8, "fp8")])
def test_attention_counts_what_a_step_counts_for_it_but_for_writing_kv(tmp_path, precision, variant):
    folder = tables.write(tmp_path, "generation_attention", "context_attention")
    decode, prefill = (tables.group(folder, f"attention_{kind}", variant) for kind in ("decode", "prefill"))
    (at,) = rows_where(decode, num_heads=64, num_key_value_heads=8, batch_size=16, step=2047)
    (pre,) = rows_where(prefill, num_heads=64, num_key_value_heads=8, batch_size=8, isl=1024)
    counts = make.joined(make.decode_counts(16, 2048), make.prefill_counts([(0, 1024)] * 8))
    by_name = {op.name: op for op in step_ops(make.model("llama-3.1-70b"), make.cluster(), precision, counts)}
    for group, row, op in ((decode, at, by_name["attention_decode"]), (prefill, pre, by_name["attention_prefill"])):
        for field in ("flops", "kv_read_bytes", "activation_bytes"):
            assert getattr(op, field) / op.launches == pytest.approx(getattr(group.op, field)[row]), field
    assert by_name["attention_decode"].work_items / by_name["attention_decode"].launches == decode.op.work_items[at]


def test_routed_experts_count_what_a_step_counts_where_all_are_chosen(tmp_path):
    """Mixtral's shape is not in the small table; its layer, by hand, is what the reader's formula gives."""
    group = tables.group(tables.write(tmp_path, "moe"), "grouped_matmul", "bf16")
    row = rows_where(group, hidden_size=4096, inter_size=2048, topk=2, num_experts=8, moe_tp_size=1, num_tokens=4096)
    assert group.op.flops[row] == 6 * 4096 * 2 * 4096 * 2048
    assert group.op.weight_bytes[row] == 8 * 3 * 4096 * 2048 * 2


def test_all_reduces_timed_with_their_launches_from_python_are_left_out(tmp_path):
    group = tables.group(tables.write(tmp_path, "custom_allreduce"), "all_reduce", "8")
    whole = pl.read_parquet(next(tmp_path.glob("*custom*")))
    graph = whole.filter((pl.col("backend") == "vllm_graph") & (pl.col("message_size") * 2 <= 1 << 27))
    assert sorted(group.seconds) == pytest.approx(sorted(graph["latency"] / 1e3))


@pytest.mark.parametrize(
    ("stack", "name", "said"),
    [("vllm", "h200_sxm", "no table of h200_sxm and vllm"), ("sglang", "h100_sxm", "no table of h100_sxm and sglang")],
)
def test_a_folder_without_the_chip_or_the_stack_says_so(tmp_path, stack, name, said):
    with pytest.raises(ConfigError, match=said):
        read(tables.write(tmp_path, "gemm"), chip(name), stack)


def test_a_path_that_is_not_there_a_missing_column_and_a_damaged_table_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        read(tmp_path / "nowhere", tables.H100, "vllm")
    path = next(tables.write(tmp_path, "gemm").glob("*gemm*"))
    pl.read_parquet(path).rename({"latency": "latency_us"}).write_parquet(path)
    with pytest.raises(ConfigError, match=r"has no column 'latency'.*Did you mean 'latency_us'"):
        read(tmp_path, tables.H100, "vllm")
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        read(tmp_path, tables.H100, "vllm")
