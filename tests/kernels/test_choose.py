"""Which implementation of paged attention runs: `auto` explains its pick, and a name is never replaced."""

import jax
import pytest

from kernels.pallas import compat
from kernels.pallas.choosing import NATIVE
from kernels.pallas.paged_attention import api
from nanoserve.specs.errors import ConfigError


def shapes(
    dtype="bfloat16",
    kv_dtype="bfloat16",
    *,
    scaled=None,
    heads=32,
    kv_heads=8,
    h=128,
    page_tokens=16,
    rows=64,
    pages=128,
):
    """Shapes of a call; pages have scales where they are int8, or as `scaled` says."""
    shaped = jax.ShapeDtypeStruct
    scaled = kv_dtype == "int8" if scaled is None else scaled
    scales = shaped((9, page_tokens, kv_heads, 2), "float32") if scaled else None
    pool = shaped((9, page_tokens, kv_heads, 2, h), kv_dtype)
    return shaped((rows, heads, h), dtype), pool, shaped((rows, pages), "int32"), scales


@pytest.mark.parametrize(("target", "name"), [("tpu", "pallas_tpu"), ("hopper", "pallas_gpu"), ("", "xla")])
def test_auto_is_the_kernel_of_the_chip_and_xla_elsewhere(target, name):
    assert api.choose("auto", target, *shapes()).name == name


@pytest.mark.parametrize(
    ("target", "call", "why"),
    [
        ("tpu", shapes("float16", "float16"), "queries of bfloat16 or float32, not float16"),
        ("tpu", shapes(kv_dtype="float16"), "takes pages of bfloat16, "),
        ("tpu", shapes("float32", "float32", scaled=True), "scales go with 8-bit pages, not with pages of float32"),
        ("tpu", shapes(h=192), "heads of up to 128 or a multiple of it, not 192"),
        ("tpu", shapes(rows=512, pages=4096), "scalar memory holds 1048576"),
        ("hopper", shapes("float32", "float32"), "queries of bfloat16 or float16 with "),
        ("hopper", shapes(kv_dtype="float16"), "not bfloat16 and float16"),
        ("hopper", shapes(kv_dtype="float8_e4m3fn"), "take scales with pages of 8 bits"),
        ("hopper", shapes(heads=65, kv_heads=1), "share a KV head among 64 queries, not 65"),
        ("hopper", shapes(page_tokens=4), "pages of 8, 16, 32, 64, ... tokens, not 4"),
        ("hopper", shapes(page_tokens=24), "pages of 8, 16, 32, 64, ... tokens, not 24"),
        ("hopper", shapes(h=80), "have head sizes (64, 96, 128, 256), not 80"),
    ],
)
def test_auto_says_why_a_kernel_does_not_serve_and_its_name_is_refused_with_the_reason(target, call, why):
    choice = api.choose("auto", target, *call)
    assert choice.name == "xla" and why in choice.why
    with pytest.raises(ConfigError, match=f"'{NATIVE[target]}' cannot be used: .*Use xla or auto"):
        api.choose(NATIVE[target], target, *call)


def test_a_name_is_taken_at_its_word_and_a_misspelt_one_is_corrected():
    assert api.choose("pallas_tpu_interpret", "", *shapes()).name == "pallas_tpu_interpret"
    with pytest.raises(ConfigError, match=r"no implementation 'palas_tpu'.*Did you mean 'pallas_tpu'\?"):
        api.choose("palas_tpu", "", *shapes())


def test_this_machine_and_hopper_and_tpu_are_told_apart():
    class Device:
        def __init__(self, platform, **attributes):
            self.platform = platform
            self.__dict__.update(attributes)

    assert compat.kernel_target(jax.devices("cpu")[0]) == ""
    assert compat.kernel_target(Device("tpu")) == "tpu"
    assert compat.kernel_target(Device("gpu", compute_capability="9.0")) == "hopper"
    assert compat.kernel_target(Device("gpu", compute_capability="8.0")) == ""
