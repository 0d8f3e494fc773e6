"""Paged attention bound to a model: layers share one work list, and the state lies as the kernel wants it."""

import dataclasses

import jax
import numpy as np
import pytest

from nanoserve.model.attention import attention_for, choose_attention
from nanoserve.model.places import state_places
from nanoserve.model.step import init_state, make_steps
from tests.model.factories import KEY, TINY, decode_rows, empty_state, prefill_rows, random_params, sequence

A, B = sequence(0, 9), sequence(3, 5)
SIZES = {"dtype": "bfloat16", "kv_dtype": "bfloat16", "rows": 4, "page_tokens": 16, "table_pages": 8}


def test_a_step_makes_its_work_list_once_and_not_in_every_layer():
    steps = make_steps(TINY, attention=attention_for(TINY, "pallas_tpu_interpret"))
    traced = steps.decode.trace(random_params(), empty_state(), decode_rows([A], [9], rows=3), KEY)
    layers = next(eqn for eqn in traced.jaxpr.jaxpr.eqns if eqn.primitive.name == "scan").params["jaxpr"]
    # The running minimum that finds the next item: nothing else in a step needs one.
    assert "cummin" in {eqn.primitive.name for eqn in traced.jaxpr.jaxpr.eqns}
    assert "cummin" not in {eqn.primitive.name for eqn in layers.jaxpr.eqns}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("implementation", ["pallas_tpu_interpret"])
def test_a_kernel_in_the_engines_steps_gives_the_logprobs_of_xla(implementation):
    found = {}
    for name in ("xla", implementation):
        steps = make_steps(TINY, attention=attention_for(TINY, name))
        prompts = prefill_rows([(A, 0, 9), (B, 0, 5)], tokens=16, rows=2)
        state, tokens, first = steps.prefill(random_params(), empty_state(), prompts, KEY)
        rows = decode_rows([A, B], [9, 5], rows=2)
        state, _, second = steps.decode(random_params(), state, rows, KEY)
        mixed = decode_rows([A], [10], rows=1), prefill_rows([(B, 0, 5)], tokens=8, rows=1)
        _, _, third = steps.mixed(random_params(), state, *mixed, KEY)
        found[name] = np.concatenate([tokens, first, second, third])
    np.testing.assert_allclose(found[implementation], found["xla"], atol=1e-5)


@pytest.mark.parametrize("kv_dtype", ["int8", "float8_e4m3fn"])
def test_8_bit_pages_stay_close_to_exact_ones(kv_dtype):
    prompts = prefill_rows([(A, 0, 9), (B, 0, 5)], tokens=16, rows=2)
    steps = make_steps(TINY)
    _, _, exact = steps.prefill(random_params(), empty_state(), prompts, KEY)
    _, _, rounded = steps.prefill(random_params(), empty_state(dtype=kv_dtype), prompts, KEY)
    np.testing.assert_allclose(rounded, exact, atol=0.2)
    assert not np.array_equal(rounded, exact)


def test_the_pool_lies_as_the_kernel_reads_it():
    places = state_places(TINY, "pallas_tpu", "bfloat16")
    assert places.pool.pages.layout.major_to_minor == (0, 1, 2, 3, 4, 5) and places.pool.scales is None
    places = state_places(TINY, "pallas_tpu", "int8")
    assert places.pool.pages.layout.major_to_minor == (0, 1, 3, 4, 2, 5)
    assert places.pool.scales.layout.major_to_minor == (0, 1, 4, 3, 2)
    state = jax.eval_shape(lambda: init_state(TINY, pages=4, page_tokens=4, slots=2, dtype="int8"))
    assert jax.tree.structure(state) == jax.tree.structure(places)
    assert state_places(TINY, "xla", "int8") is None


def test_a_chip_of_many_is_asked_about_its_own_heads():
    wide = dataclasses.replace(TINY, heads=64 * 8, kv_heads=8, head_size=64)
    assert choose_attention("auto", wide, "hopper", ways=1, **SIZES).name == "pallas_gpu"
    one_kv_head = dataclasses.replace(wide, kv_heads=2, heads=2 * 65)
    assert "not 65" in choose_attention("auto", one_kv_head, "hopper", ways=2, **SIZES).why
