"""Constants: where they come from is always said, and they predict operations that others measured."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nanoserve.roofline.calibration import Calibration, Kernel, constants_for, provenance
from nanoserve.roofline.ops import Op
from nanoserve.roofline.timing import op_times
from nanoserve.specs.chip_registry import chip, chip_names
from nanoserve.specs.errors import ConfigError
from tests.roofline import factories as make

PROFILES = Path(__file__).parents[3] / "shared" / "profiles" / "aiconfigurator_h100"
# Mean absolute relative errors of the constants on the profile, measured once and rounded up.
MATMUL_BF16_ERROR = 0.08
MATMUL_FP8_ERROR = 0.25
DECODE_ATTENTION_ERROR = 0.25
PREFILL_ATTENTION_ERROR = 0.17
ALL_REDUCE_ERROR = 0.20


@pytest.mark.parametrize("name", chip_names())
@pytest.mark.parametrize("mode", ["sol", "calibrated"])
def test_every_constant_of_every_chip_states_its_source(name, mode):
    for row in provenance(constants_for(chip(name), make.BF16, mode), chip(name)):
        assert len(row) == 4 and row[3], row


def test_only_an_h100_is_called_calibrated():
    for name in chip_names():
        calibration = constants_for(chip(name), make.BF16, "calibrated")
        said = "uncalibrated" in calibration.stack and "not validated" in calibration.validation
        assert said == (name != "h100_sxm")


def test_the_limit_has_no_overheads_and_full_shares():
    sol = constants_for(chip("h100_sxm"), make.FP8, "sol")
    assert sol.host_gap_s == 0
    for field in dataclasses.fields(Calibration):
        value = getattr(sol, field.name)
        if isinstance(value, Kernel):
            assert (value.overhead_s, value.compute_share) == (0, 1) and value.memory_share >= 1


def test_a_number_of_chips_between_two_known_ones_takes_the_larger():
    calibration = constants_for(chip("h100_sxm"), make.BF16, "calibrated")
    assert calibration.collective_for(3) == calibration.collectives[4]
    assert calibration.collective_for(16) == calibration.collectives[8]


def test_an_unknown_mode_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'calibrated'"):
        constants_for(chip("h100_sxm"), make.BF16, "calibrate")  # pyright: ignore[reportArgumentType]


# ---- against single operations that others measured ----


def profile(name: str):
    polars = pytest.importorskip("polars")
    path = PROFILES / f"h100_sxm__{name}.parquet"
    if not path.exists():
        pytest.skip(f"no measured profile at {path}")
    return polars.read_parquet(path).to_dict()


def columns(table, keep: np.ndarray, *names: str) -> list[np.ndarray]:
    return [table[name].to_numpy()[keep].astype(float) for name in names]


def error(op: Op, ways: int, measured_ms: np.ndarray) -> float:
    cluster, precision = make.cluster(ways=ways), make.FP8 if op.compute == "fp8" else make.BF16
    calibration = constants_for(cluster.chip, precision, "calibrated")
    return float(np.mean(np.abs(op_times(op, cluster, calibration).total / (measured_ms * 1e-3) - 1)))


@pytest.mark.parametrize(
    ("dtype", "compute", "size", "limit"),
    [("bfloat16", "bf16", 2, MATMUL_BF16_ERROR), ("fp8", "fp8", 1, MATMUL_FP8_ERROR)],
)
def test_matrix_products_agree_with_the_h100_profile(dtype, compute, size, limit):
    table = profile("gemm__vllm-0.24.0__gemm_perf")
    shape = [table[x].to_numpy() for x in "nk"]
    keep = (table["gemm_dtype"].to_numpy() == dtype) & (np.minimum(*shape) >= 1024) & (np.maximum(*shape) < 50_000)
    m, n, k, measured = columns(table, keep, "m", "n", "k", "latency")
    op = Op(
        name="product",
        kind="matmul",
        compute=compute,
        flops=2 * m * n * k,
        weight_bytes=n * k * size,
        activation_bytes=2 * m * (n + k),
        launches=1,
    )
    assert len(m) > 10_000
    assert error(op, 1, measured) < limit


def test_decode_attention_agrees_with_the_h100_profile():
    table = profile("attention__vllm-0.24.0__generation_attention_perf")
    keep = _flash_attention(table)
    rows, past, heads, kv_heads, measured = columns(
        table, keep, "batch_size", "step", "num_heads", "num_key_value_heads", "latency"
    )
    attended = rows * (past + 1)
    op = Op(
        name="attention_decode",
        kind="attention_decode",
        flops=4 * attended * heads * 128,
        kv_read_bytes=2 * attended * kv_heads * 128 * 2,
        launches=1,
    )
    assert len(rows) > 500
    assert error(op, 1, measured) < DECODE_ATTENTION_ERROR


def test_prefill_attention_agrees_with_the_h100_profile():
    table = profile("attention__vllm-0.24.0__context_attention_perf")
    keep = _flash_attention(table) & (table["isl"].to_numpy() >= 128)
    rows, tokens, heads, measured = columns(table, keep, "batch_size", "isl", "num_heads", "latency")
    op = Op(
        name="attention_prefill",
        kind="attention_prefill",
        flops=2 * rows * tokens * (tokens + 1) * heads * 128,
        launches=1,
        reuse_tokens=tokens + 1,
    )
    assert len(rows) > 150
    assert error(op, 1, measured) < PREFILL_ATTENTION_ERROR


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_all_reduces_of_a_step_agree_with_the_h100_profile(ways):
    table = profile("comm__vllm-0.24.0__custom_allreduce_perf")
    elements = table["message_size"].to_numpy()
    keep = (
        (table["num_gpus"].to_numpy() == ways) & (table["backend"].to_numpy() == "vllm_graph") & (elements <= 1 << 24)
    )
    elements, measured = columns(table, keep, "message_size", "latency")
    op = Op(name="all_reduce", kind="collective", link_bytes=2 * (ways - 1) / ways * 2 * elements, launches=1)
    assert error(op, ways, measured) < ALL_REDUCE_ERROR


def _flash_attention(table) -> np.ndarray:
    """Rows of the kernel that vLLM picks on an H100, bf16, head size 128, 8 query heads per KV head, no window."""
    wanted = {"kernel_source": "vllm_flash_attn_fa3", "kv_cache_dtype": "bfloat16", "head_dim": 128, "window_size": 0}
    keep = table["num_heads"].to_numpy() == 8 * table["num_key_value_heads"].to_numpy()
    for name, value in wanted.items():
        keep &= table[name].to_numpy() == value
    return keep
