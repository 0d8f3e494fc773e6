"""The parts of the decoder against NumPy float64, and what its matrix products cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanoserve.model import decoder
from nanoserve.model.decoder import rms_norm
from nanoserve.model.feed_forward import ACTIVATIONS, experts
from nanoserve.model.flops import dot_general_flops
from nanoserve.model.params import abstract, from_tensors
from nanoserve.model.rope import frequencies, rotate, rotation
from nanoserve.model.step import init_state, make_steps
from nanoserve.specs.models import RopeScaling, full_attention_layers
from nanoserve.weights.random import RandomTensors
from tests.model.factories import EXPERTS, KEY, TINY, decode_rows, prefill_rows, sequence

UNTIED, TIED = TINY, dataclasses.replace(TINY, tied_embeddings=True)


def test_rms_norm_matches_float64():
    x = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32) * 10
    weight = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    want = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + 1e-3) * weight
    np.testing.assert_allclose(rms_norm(x, weight, 1e-3), want, rtol=2e-6)


def test_rms_norm_of_bf16_is_rounded_once():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 32)), jnp.bfloat16)
    exact = rms_norm(x.astype(jnp.float32), jnp.ones(32), 1e-5)
    np.testing.assert_array_equal(rms_norm(x, jnp.ones(32, jnp.bfloat16), 1e-5), exact.astype(jnp.bfloat16))


def test_rotation_is_a_complex_product():
    positions = np.array([0, 1, 7, 400])
    x = np.random.default_rng(0).standard_normal((4, 2, 3, TINY.head_size)).astype(np.float32)
    half = TINY.head_size // 2
    turns = np.exp(1j * positions[:, None] * 10000.0 ** (-np.arange(half) / half))
    want = (x[..., :half] + 1j * x[..., half:]) * turns[:, None, None]
    got = rotate(jnp.asarray(x), rotation(TINY, jnp.asarray(positions)))
    np.testing.assert_allclose(got, np.concatenate([want.real, want.imag], axis=-1), atol=1e-4)


def test_llama3_scaling_keeps_fast_frequencies_and_divides_slow_ones():
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_tokens=8192)
    spec = dataclasses.replace(TINY, head_size=128, rope_theta=500000.0)
    plain = frequencies(spec)
    scaled = frequencies(dataclasses.replace(spec, rope_scaling=scaling))
    waves = 2 * np.pi / plain
    fast, slow = waves < 8192 / 4, waves > 8192
    np.testing.assert_array_equal(scaled[fast], plain[fast])
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
    between = ~fast & ~slow
    assert between.any() and ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_activations_match_their_definitions():
    x = np.linspace(-4, 4, 33)
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(ACTIVATIONS["silu"](x), x / (1 + np.exp(-x)), atol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](x), tanh, atol=1e-6)
    assert 1e-5 < np.abs(ACTIVATIONS["gelu"](x) - tanh).max() < 1e-3


def test_each_token_meets_its_experts_alone_however_tokens_are_mixed():
    """Against a loop in float64; tokens beside it change nothing, bit for bit."""
    rng, moe = np.random.default_rng(0), EXPERTS.moe
    params = from_tensors(EXPERTS, RandomTensors(EXPERTS, seed=0), jnp.float32)
    layer = decoder.one_layer(params.layers, 1)
    x_TD = rng.standard_normal((7, EXPERTS.hidden)).astype(np.float32)
    want = np.zeros(x_TD.shape)
    for token, x_D in enumerate(x_TD.astype(np.float64)):
        chances = np.exp(x_D @ np.asarray(layer.router))
        chosen = np.argsort(-chances)[: moe.top_k]
        for expert in chosen:
            gate, up = np.split(x_D @ np.asarray(layer.w_experts_gate_up[1, expert]), 2)
            out = (gate / (1 + np.exp(-gate)) * up) @ np.asarray(layer.w_experts_down[1, expert])
            want[token] += chances[expert] / chances[chosen].sum() * out
    got = experts(layer, 1, moe, "silu", jnp.asarray(x_TD))
    np.testing.assert_allclose(got, want, atol=1e-5)
    beside_others = experts(layer, 1, moe, "silu", jnp.asarray(x_TD).at[1:].set(7.0))
    np.testing.assert_array_equal(beside_others[0], got[0])


@pytest.mark.parametrize(("layers", "period"), [(1, 2), (6, 2), (7, 3), (8, 3), (4, 1), (5, None)])
def test_every_layer_runs_once_in_order_with_its_window(layers, period):
    spec = dataclasses.replace(TINY, layers=layers, sliding_window_tokens=9, full_attention_every=period)

    def layer_with(window, index, carry):
        ran, count = carry
        return ran.at[count].set(jnp.stack([index, window or 0])), count + 1

    ran, count = decoder.through_layers(spec, spec.layers, layer_with, (jnp.zeros((layers, 2), jnp.int32), 0))
    full = {index for index in range(layers) if period and (index + 1) % period == 0}
    assert ran.tolist() == [[index, 0 if index in full else 9] for index in range(layers)]
    assert count == layers and full_attention_layers(spec) == len(full)


def test_layers_with_a_window_may_turn_by_another_base():
    spec = dataclasses.replace(TINY, sliding_window_tokens=9, local_rope_theta=100.0)
    np.testing.assert_array_equal(frequencies(spec, 9), frequencies(dataclasses.replace(TINY, rope_theta=100.0)))
    np.testing.assert_array_equal(frequencies(spec, None), frequencies(TINY))


def layer_flops(spec, tokens: int) -> dict[str, int]:
    """2 m n k of every projection of all layers, from the spec alone."""
    D, H, K, h = spec.hidden, spec.heads, spec.kv_heads, spec.head_size
    return {
        "attention/qkv": spec.layers * 2 * tokens * D * (H + 2 * K) * h,
        "attention/out": spec.layers * 2 * tokens * H * h * D,
        "mlp/gate_up": spec.layers * 2 * 2 * tokens * D * spec.ffn,
        "mlp/down": spec.layers * 2 * tokens * spec.ffn * D,
    }


@pytest.mark.parametrize("spec", [UNTIED, TIED], ids=["untied", "tied"])
def test_decode_multiplies_exactly_what_the_formulas_say(spec):
    rows, steps, chunks = 3, 5, 2
    state = jax.eval_shape(lambda: init_state(spec, pages=40, page_tokens=64, slots=6, dtype=jnp.float32))
    decode = decode_rows([sequence(0, 9)], [300], rows=rows)
    step = make_steps(spec).decode.trace(abstract(spec, jnp.float32), state, decode, KEY)
    attended = rows * chunks * 256  # the longest row needs two chunks of 256 positions
    assert dot_general_flops(step.jaxpr, while_trips=chunks) == {
        **layer_flops(spec, rows),
        "attention/decode_attention": spec.layers * 4 * spec.heads * spec.head_size * attended,
        "head": 2 * rows * spec.hidden * spec.vocab,
    }
    loop = make_steps(spec).decode_loop.trace(abstract(spec, jnp.float32), state, decode, 5, KEY, max_steps=8)
    projections = layer_flops(spec, rows * steps)
    counted = dot_general_flops(loop.jaxpr, while_trips=steps)
    assert {name: counted[name] for name in projections} == projections


def test_prefill_multiplies_exactly_what_the_formulas_say():
    tokens, rows, table = 32, 3, 8 * 4
    state = jax.eval_shape(lambda: init_state(TINY, pages=40, page_tokens=4, slots=6, dtype=jnp.float32))
    prefill = prefill_rows([(sequence(0, 9), 0, 9)], tokens=tokens, rows=rows)
    step = make_steps(TINY).prefill.trace(abstract(TINY, jnp.float32), state, prefill, KEY)
    assert dot_general_flops(step.jaxpr) == {
        **layer_flops(TINY, tokens),
        "attention/prefill_attention": TINY.layers * 4 * TINY.heads * TINY.head_size * tokens * table,  # one block
        "head": 2 * rows * TINY.hidden * TINY.vocab,
    }


def test_flops_go_through_scans_conditions_and_calls():
    def program(x):
        x, _ = jax.lax.scan(lambda carry, _: (carry @ carry, None), x, length=7)
        return jax.jit(lambda y: jax.lax.cond(y[0, 0] > 0, lambda z: z @ z @ z, lambda z: z @ z, y))(x)

    counted = dot_general_flops(jax.make_jaxpr(program)(jnp.zeros((4, 4))))
    assert counted.total() == (7 + 2) * 2 * 4**3
