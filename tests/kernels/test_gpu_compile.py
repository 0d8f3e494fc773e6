"""Every variant of the GPU kernels is accepted by the compiler for Hopper, on a machine that has no GPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kernels.pallas import aot_gpu
from kernels.pallas.gpu_target import target_config
from kernels.pallas.paged_attention import gpu
from nanoserve.specs import chip_registry
from nanoserve.specs.errors import ConfigError

needs_compiler = pytest.mark.skipif(not aot_gpu.available(), reason="needs the compiler for GPUs: run `make aot-gpu`")

MOST_SHARED_BYTES = 227 * 1024  # of a thread block on Hopper

DECODE: dict[str, dict[str, Any]] = {
    "llama": {},
    "page_16_of_200k_group_16": {"page_tokens": 16, "pages": 200_000, "kv_heads": 1, "groups": 16},
    "page_32_head_64_group_1": {"page_tokens": 32, "head_size": 64, "groups": 1},
    "page_128_head_96_group_7": {"page_tokens": 128, "head_size": 96, "groups": 7},
    "head_256_group_3_window_cap": {"head_size": 256, "groups": 3, "window": 100, "soft_cap": 30.0},
    "float16": {"dtype": jnp.float16},
    "int8": {"kv_dtype": jnp.int8},
    "fp8_page_8_head_96_window_cap": {
        "kv_dtype": jnp.float8_e4m3fn,
        "page_tokens": 8,
        "head_size": 96,
        "window": 100,
        "soft_cap": 30.0,
    },
    "fp8_head_256_group_8_of_1": {"kv_dtype": jnp.float8_e4m3fn, "head_size": 256, "groups": 8, "kv_heads": 1},
}
PREFILL: dict[str, dict[str, Any]] = {
    "llama": {},
    "page_16_of_200k_group_16": {"page_tokens": 16, "pages": 200_000, "kv_heads": 1, "groups": 16},
    "page_8_window_cap": {"page_tokens": 8, "window": 100, "soft_cap": 30.0},
    "page_32_head_64_group_3": {"page_tokens": 32, "head_size": 64, "groups": 3},
    "page_128_window_cap": {"page_tokens": 128, "window": 100, "soft_cap": 30.0},
    "page_16_head_96_group_2": {"page_tokens": 16, "head_size": 96, "groups": 2},
    "head_256": {"head_size": 256},
    "head_256_window_cap": {"head_size": 256, "window": 100, "soft_cap": 30.0},
    "float16": {"dtype": jnp.float16},
    "int8": {"kv_dtype": jnp.int8},
    "fp8_page_16_head_64": {"kv_dtype": jnp.float8_e4m3fn, "page_tokens": 16, "head_size": 64},
    "fp8_page_8_head_96_window_cap": {
        "kv_dtype": jnp.float8_e4m3fn,
        "page_tokens": 8,
        "head_size": 96,
        "window": 100,
        "soft_cap": 30.0,
    },
    "int8_float16_page_128_group_8_of_1": {
        "kv_dtype": jnp.int8,
        "dtype": jnp.float16,
        "page_tokens": 128,
        "groups": 8,
        "kv_heads": 1,
    },
    "int8_head_256": {"kv_dtype": jnp.int8, "head_size": 256},
    "int8_head_256_window_cap": {"kv_dtype": jnp.int8, "head_size": 256, "window": 100, "soft_cap": 30.0},
}


def arguments(
    kind: str,
    *,
    kv_heads=8,
    groups=4,
    head_size=128,
    page_tokens=64,
    pages=1024,
    dtype: Any = jnp.bfloat16,
    kv_dtype: Any = None,
) -> list[jax.ShapeDtypeStruct]:
    """Shapes of a call: 32 sequences of at most 2048 positions, or 8 with 1024 new tokens; scales are last."""
    rows, tokens = (32, 32) if kind == "decode" else (8, 1024)
    shapes: list[tuple[tuple[int, ...], Any]] = [
        ((tokens, kv_heads * groups, head_size), dtype),
        ((pages, page_tokens, kv_heads, 2, head_size), kv_dtype or dtype),
        ((rows, 2048 // page_tokens), jnp.int32),
        ((rows,), jnp.int32),
    ]
    shapes += [((rows + 1,), jnp.int32)] if kind == "prefill" else []
    shapes += [((pages, page_tokens, kv_heads, 2), jnp.float32)] if kv_dtype else []
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]


def compile_case(kind: str, *, window=None, soft_cap=None, **shape):
    attention = {"decode": gpu.decode_attention, "prefill": gpu.prefill_attention}[kind]
    options = {"scale": 0.125, "window": window, "soft_cap": soft_cap}

    def fn(*args):
        if "kv_dtype" not in shape:
            return attention(*args, **options)
        *args, kv_scales = args
        return attention(*args, **options, kv_scales=kv_scales)

    return aot_gpu.compiled_for_h100(fn, *arguments(kind, **shape))


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "name"), [*(("decode", name) for name in DECODE), *(("prefill", name) for name in PREFILL)]
)
def test_the_compiler_takes_it_without_spills_or_waits_between_products(kind, name):
    variant = {"decode": DECODE, "prefill": PREFILL}[kind][name]
    _, report = compile_case(kind, **variant)
    assert report.kernels == 1
    assert report.spill_bytes == 0
    assert not report.wgmma_serialised
    assert 0 < report.shared_bytes <= MOST_SHARED_BYTES


@needs_compiler
@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_layers_share_one_work_list_and_one_kernel_and_copy_no_pool(kind):
    attention = {"decode": gpu.decode_attention, "prefill": gpu.prefill_attention}[kind]
    q, kv_pages, *rest = arguments(kind)

    def three_layers(q, first, second, third, *rest):
        for kv_pages in (first, second, third):
            q = q + attention(q, kv_pages, *rest, scale=0.125)
        return q

    compiled, report = aot_gpu.compiled_for_h100(three_layers, q, kv_pages, kv_pages, kv_pages, *rest)
    assert report.kernels == 1
    text = compiled.as_text()
    assert text.count(" sort(") == 1
    assert text.count("custom_call_target=") == 3
    pool_bytes = kv_pages.size * kv_pages.dtype.itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < pool_bytes / 2


@needs_compiler
def test_registers_that_do_not_fit_are_reported():
    """The test of spills can fail: a block of 256 positions needs more registers than there are."""
    blocks = gpu.Blocks(block_tokens=256, stages=1)
    fn = functools.partial(gpu.prefill_attention, scale=0.125, blocks=blocks)
    assert aot_gpu.compile_for_h100(fn, *arguments("prefill")).spill_bytes > 0


def test_a_target_carries_the_chip_s_memory_and_the_architecture_with_wgmma():
    chip = chip_registry.chip("h100_sxm")
    text = target_config(chip)
    assert f"device_memory_size: {chip.hbm_bytes}\n" in text
    assert "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES" in text
    assert "shared_memory_per_block_optin: 232448\n" in text


def test_a_chip_without_a_target_is_refused_by_name():
    with pytest.raises(ConfigError, match="no GPU target for chip 'tpu_v5e'"):
        target_config(chip_registry.chip("tpu_v5e"))


@pytest.mark.skipif(aot_gpu.available(), reason="the compiler for GPUs is installed")
def test_without_the_compiler_the_message_says_how_to_get_it():
    with pytest.raises(ConfigError, match="make aot-gpu"):
        aot_gpu.compile_for_h100(jnp.sin, jax.ShapeDtypeStruct((8,), jnp.float32))
