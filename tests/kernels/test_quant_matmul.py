"""Quantised weights and the XLA products with them, against an oracle and the definition of rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.pallas.quant_matmul import api, arg_specs, reference, schemes
from kernels.pallas.quant_matmul.quantise import dequantise, quantise, quantise_rows
from kernels.pallas.quant_matmul.weight import QuantWeight, stored_bytes
from nanoserve.specs.errors import ConfigError

ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 1e-6}  # of a result, relative
SUMS = 1e-5  # float32 sums of products that add up to 1 or so, in any order
HALF = 0.5 + 1e-3  # of a step; quotients and bf16 scales are rounded too

INTEGERS = [("int8", None), ("int8", 64), ("int4", 32), ("int4", 64), ("int4", 128)]
SCALES = ["float32", "bfloat16"]

PRODUCTS = {None: api.quant_matmul, "int8": api.int8_matmul, "fp8": api.fp8_matmul}


def weights(seed: int, shape=(256, 24)) -> np.ndarray:
    """Weights whose groups and channels differ in size by orders of magnitude."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 2, (shape[-2], 1))).astype(np.float32)


def scales_of(weight: QuantWeight) -> np.ndarray:
    """The scale of every weight, [D, F]."""
    return np.repeat(np.asarray(weight.scales, np.float64), weight.group, axis=-2)


def oracle(x_TD, weight: QuantWeight, rows: str | None) -> np.ndarray:
    values, row_scales = (x_TD, None) if rows is None else quantise_rows(x_TD, rows)
    return reference.matmul(values, weight.values, weight.scales, row_scales)


@pytest.mark.parametrize(("scheme", "group"), INTEGERS)
@pytest.mark.parametrize("scale_dtype", SCALES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=3)
def test_an_integer_is_within_half_a_step_of_its_weight(scheme, group, scale_dtype, seed):
    w_DF = weights(seed)
    weight = quantise(jnp.asarray(w_DF), scheme, group, scale_dtype)
    error = np.abs(reference.dequantise(weight.values, weight.scales) - w_DF)
    assert np.all(error <= HALF * scales_of(weight))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=3)
def test_an_fp8_number_is_within_half_of_its_last_bit_of_its_weight(seed):
    w_DF = weights(seed)
    weight = quantise(jnp.asarray(w_DF), "fp8")
    error = np.abs(reference.dequantise(weight.values, weight.scales) - w_DF)
    three_bits, subnormal = np.abs(w_DF) * 2**-3, scales_of(weight) * 2**-9
    assert np.all(error <= HALF * np.maximum(three_bits, subnormal))


@pytest.mark.parametrize(("scheme", "group"), [*INTEGERS, ("fp8", None)])
def test_the_largest_weight_of_each_group_is_the_largest_number_that_is_stored(scheme, group):
    weight = quantise(jnp.asarray(weights(1)), scheme, group, "float32")
    values_FGd = np.abs(np.asarray(weight.values, np.float32)).reshape(24, weight.groups, weight.group)
    assert np.all(values_FGd.max(axis=2) == schemes.SCHEMES[scheme].largest)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_zeros_stay_zeros_and_a_nan_stays_in_its_group(scheme):
    w_DF = np.zeros((256, 4), np.float32)
    w_DF[200, 2] = np.nan
    got = np.array(dequantise(quantise(jnp.asarray(w_DF), scheme)))
    first = 128 if scheme == "int4" else 0
    assert np.isnan(got[first:, 2]).all()
    got[first:, 2] = 0
    np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_a_stack_is_quantised_layer_by_layer(scheme):
    w_LDF = jnp.asarray(weights(2, (3, 128, 8)))
    stack = quantise(w_LDF, scheme)
    for layer in range(3):
        alone = quantise(w_LDF[layer], scheme)
        np.testing.assert_array_equal(stack.values[layer], alone.values)
        np.testing.assert_array_equal(stack.scales[layer], alone.scales)
        np.testing.assert_array_equal(dequantise(stack)[layer], dequantise(alone))


@pytest.mark.parametrize(("scheme", "group"), [*INTEGERS, ("fp8", None)])
def test_dequantised_weights_are_the_oracle_s(scheme, group):
    weight = quantise(jnp.asarray(weights(3)), scheme, group)
    want = reference.dequantise(weight.values, weight.scales)
    np.testing.assert_array_equal(dequantise(weight), want.astype(np.float32))


@pytest.mark.parametrize(("scheme", "group"), [*INTEGERS, ("fp8", None)])
def test_bytes_per_weight_are_those_of_the_arrays(scheme, group):
    weight = quantise(jnp.asarray(weights(3)), scheme, group)
    stored = stored_bytes(weight.values) + stored_bytes(weight.scales)
    assert schemes.bytes_per_weight(scheme, 256, group) == stored / weight.values.size


def test_four_bits_in_groups_of_128_take_4_125_bits_a_weight():
    assert 8 * schemes.bytes_per_weight("int4", 4096) == 4.125
    assert 8 * schemes.bytes_per_weight("int4", 4096, scale_bytes=4) == 4.25
    assert schemes.bytes_per_weight("int8", 4096) == 1 + 4 / 4096


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_rows_are_scaled_by_their_own_largest_magnitude(scheme):
    x_TD = weights(4, (6, 64))
    x_TD[2] = 0
    values, scales = quantise_rows(jnp.asarray(x_TD), scheme)
    largest = schemes.SCHEMES[scheme].largest
    np.testing.assert_allclose(scales, np.where(np.arange(6) == 2, 1, np.abs(x_TD).max(axis=1) / largest), rtol=1e-6)
    quotients = x_TD.astype(np.float64) / np.asarray(scales, np.float64)[:, None]
    steps = 1 if scheme == "int8" else np.maximum(np.abs(quotients) * 2**-3, 2**-9)
    assert np.all(np.abs(np.asarray(values, np.float64) - quotients) <= HALF * steps)


@pytest.mark.parametrize("name", arg_specs.SMALL)
def test_the_xla_product_is_the_oracle_s_rounded_once(name):
    shape = arg_specs.SMALL[name]
    x_TD, weight = arg_specs.make(shape, seed=5)
    got = PRODUCTS[shape.rows](x_TD, weight, implementation="xla")
    assert got.dtype == x_TD.dtype
    want = oracle(x_TD, weight, shape.rows)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=ROUNDING[shape.dtype], atol=SUMS)


@pytest.mark.parametrize(("scheme", "group"), [("int8", None), ("int4", 32), ("fp8", None)])
def test_float32_activations_are_not_rounded(scheme, group):
    x_TD, weight = arg_specs.make(arg_specs.Shape(tokens=3, scheme=scheme, group=group, dtype="float32"), seed=6)
    got = api.quant_matmul(x_TD, weight, implementation="xla")
    np.testing.assert_allclose(got, oracle(x_TD, weight, None), rtol=ROUNDING["float32"], atol=SUMS)


def test_a_scale_of_the_next_channel_or_group_is_noticed():
    """The comparisons above can fail: neighbouring scales differ by far more than the tolerance."""
    shape = arg_specs.SMALL["int4_group_32_f32_scales"]
    x_TD, weight = arg_specs.make(shape, seed=5)
    want = oracle(x_TD, weight, None)
    for axis in (0, 1):
        moved = weight.replace(scales=jnp.roll(weight.scales, 1, axis))
        got = np.asarray(api.quant_matmul(x_TD, moved, implementation="xla"), np.float64)
        assert np.mean(np.abs(got - want) > 2**-8 * np.abs(want) + SUMS) > 0.5


@pytest.mark.parametrize("name", ["int8_per_channel", "int4_group_128", "int8_rows", "fp8_rows"])
def test_a_row_has_the_same_bits_beside_rows_of_nan(name):
    shape = arg_specs.SMALL[name]
    x_TD, weight = arg_specs.make(shape, seed=7)
    want = PRODUCTS[shape.rows](x_TD, weight, implementation="xla")
    got = np.array(PRODUCTS[shape.rows](x_TD.at[1].set(jnp.nan), weight, implementation="xla"), np.float32)
    assert np.isnan(got[1]).all()
    keep = np.arange(shape.tokens) != 1
    np.testing.assert_array_equal(got[keep], np.asarray(want, np.float32)[keep])


def test_quantised_weights_pass_through_jit_and_scan_as_arrays():
    stack = quantise(jnp.asarray(weights(8, (3, 128, 128))), "int4")
    x_TD = jnp.ones((2, 128), jnp.float32)

    @jax.jit
    def layers(stack):
        return jax.lax.scan(lambda x, weight: (x, api.quant_matmul(x, weight, implementation="xla")), x_TD, stack)[1]

    want = [reference.matmul(x_TD, stack.values[i], stack.scales[i]) for i in range(3)]
    np.testing.assert_allclose(layers(stack), want, rtol=1e-4, atol=1e-2)


def test_auto_is_the_kernel_of_the_chip_where_it_serves_all_products_and_says_why():
    served, refused = (arg_specs.multiplied(arg_specs.Shape(tokens=4, inputs=inputs))[:2] for inputs in (128, 192))
    assert api.choose("auto", "hopper", [served]) == ("pallas_gpu", "it is the kernel for hopper")
    assert api.choose("auto", "", [served]) == ("xla", "there is no kernel for this device")
    name, why = api.choose("auto", "hopper", [served, refused])
    assert name == "xla" and "multiple of 128 inputs" in why


@pytest.mark.parametrize("name", api.IMPLEMENTATIONS)
def test_an_explicit_choice_is_kept_or_refused_with_the_reason_that_why_not_gives(name):
    for shape in [*arg_specs.SMALL.values(), arg_specs.Shape(tokens=3, dtype="float32", inputs=96)]:
        x_TD, weight, _ = arg_specs.multiplied(shape)
        reason = api.IMPLEMENTATIONS[name].why_not(x_TD, weight)
        if reason is None:
            assert api.choose(name, "", [(x_TD, weight)]).name == name
        else:
            with pytest.raises(ConfigError) as error:
                api.choose(name, "", [(x_TD, weight)])
            assert reason in str(error.value) and "Use xla" in str(error.value)


REFUSED = [
    ("pallas_tpu", {"dtype": "float16"}, "rows of bfloat16, float32, int8, not float16"),
    ("pallas_tpu", {"scheme": "fp8", "rows": "fp8"}, "not float8_e4m3fn"),
    ("pallas_tpu", {"inputs": 192}, "multiple of 128 inputs, not 192"),
    ("pallas_tpu", {"inputs": 2**18, "rows": "int8", "outputs": 8}, "int32 holds the products of 133144 inputs"),
    ("pallas_gpu", {"dtype": "float32"}, "rows of bfloat16 or float16, or 8-bit ones, not float32"),
    ("pallas_gpu", {"inputs": 192}, "multiple of 128 inputs and of 64 outputs, not 192 and 256"),
    ("pallas_gpu", {"scheme": "int4", "rows": "int8"}, "int8 rows by int8 weights, not int4: use quant_matmul"),
    ("pallas_gpu", {"group": 32, "rows": "int8"}, "int8 rows in groups of 128, not 32"),
]


@pytest.mark.parametrize(("name", "fields", "message"), REFUSED)
def test_what_a_kernel_does_not_serve_is_refused_with_the_reason(name, fields, message):
    x_TD, weight, _ = arg_specs.multiplied(arg_specs.Shape(tokens=4, **fields))
    with pytest.raises(ConfigError, match=message):
        api.choose(name, "", [(x_TD, weight)])


def test_names_that_do_not_exist_are_answered_with_the_nearest():
    x_TD, weight = arg_specs.make(arg_specs.SMALL["fp8"], seed=0)
    with pytest.raises(ConfigError, match=r"no implementation 'palas_gpu'\. Did you mean 'pallas_gpu'"):
        api.quant_matmul(x_TD, weight, implementation="palas_gpu")
    with pytest.raises(ConfigError, match=r"called 'int5'\. Did you mean 'int"):
        quantise(jnp.zeros((128, 8)), "int5")


def test_groups_and_schemes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="32, 64, 128 weights or a whole column, not 48"):
        quantise(jnp.zeros((96, 8)), "int4", 48)
    with pytest.raises(ConfigError, match="one scale per output channel"):
        quantise(jnp.zeros((128, 8)), "fp8", 64)
    with pytest.raises(ConfigError, match="200 inputs are not a multiple of a group of 128"):
        quantise(jnp.zeros((200, 8)), "int4")
    x_TD, fp8 = arg_specs.make(arg_specs.SMALL["fp8"], seed=0)
    with pytest.raises(ConfigError, match="int8_matmul takes int8 or int4 weights, not float8_e4m3fn: use fp8_matmul"):
        api.int8_matmul(x_TD, fp8, implementation="xla")
    with pytest.raises(ConfigError, match="fp8_matmul takes fp8 weights, not int8: use int8_matmul"):
        api.fp8_matmul(*arg_specs.make(arg_specs.SMALL["int8_one_token"], seed=0), implementation="xla")


def test_shapes_that_do_not_fit_are_refused_by_name():
    x_TD, weight = arg_specs.make(arg_specs.SMALL["int4_group_128"], seed=0)
    with pytest.raises(ValueError, match=r"activations \(5, 128\) do not fit a weight of 256 inputs"):
        api.quant_matmul(x_TD[:, :128], weight, implementation="xla")
    with pytest.raises(ValueError, match=r"or a stack .* and a layer"):
        api.quant_matmul(x_TD, jax.tree.map(lambda leaf: leaf[None], weight), implementation="xla")
    with pytest.raises(ValueError, match="activations are floats"):
        api.quant_matmul(x_TD.astype(jnp.int8), weight, implementation="xla")


@pytest.mark.parametrize("name", ["int8_per_channel", "int4_group_128", "int8_rows", "fp8_rows"])
def test_a_layer_of_a_stack_has_the_bits_of_that_layer_alone(name):
    shape = arg_specs.SMALL[name]
    x_TD, weight = arg_specs.make(shape, seed=7)
    stack = jax.tree.map(lambda *layers: jnp.stack(layers), arg_specs.make(shape, seed=8)[1], weight)
    found = PRODUCTS[shape.rows](x_TD, stack, layer=jnp.int32(1), out_dtype=jnp.float32, implementation="xla")
    want = PRODUCTS[shape.rows](x_TD, weight, out_dtype=jnp.float32, implementation="xla")
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, want)
