"""The entry points: one request's tokens are the same whatever the plan, and padding leaves no trace."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanoserve.model.params import abstract
from nanoserve.model.step import init_state, make_steps
from tests.model.factories import (
    KEY,
    SLOTS,
    TABLE_PAGES,
    TINY,
    Sequence,
    decode_rows,
    empty_state,
    prefill_rows,
    random_params,
    sampling,
    sequence,
)

STEPS = make_steps(TINY)
PARAMS = random_params()
A, B, C = sequence(0, 9), sequence(3, 5), sequence(4, 12)
LOGPROB_TOLERANCE = 1e-5  # other shapes may add in another order


def hot(rows: int, seeds: list[int]):
    """Every row draws with a seed of its own."""
    return sampling(rows, temperature=1.0, seed=np.pad(np.array(seeds), (0, rows - len(seeds))))


def prefilled(*sequences: Sequence, how=None):
    """A state in which these prompts are written, and their first tokens."""
    chunks = [(s, 0, len(s.tokens)) for s in sequences]
    state, tokens, _ = STEPS.prefill(PARAMS, empty_state(), prefill_rows(chunks, tokens=32, rows=3, how=how), KEY)
    return state, np.asarray(tokens)[: len(sequences)]


def copied(state):
    """A state that a step may consume without taking `state` away."""
    return jax.tree.map(jnp.copy, state)


@pytest.mark.parametrize("kind", ["prefill", "decode", "mixed"])
def test_the_compiled_step_updates_the_pool_in_place(kind):
    """A copy of it in every layer costs more than the step; parts of a mixed step that took turns made two."""
    rows = {"decode": decode_rows([A], [9], rows=3), "prefill": prefill_rows([(B, 0, 5)], tokens=8, rows=2)}
    asked = tuple(rows.values()) if kind == "mixed" else (rows[kind],)
    state = empty_state()
    program = getattr(STEPS, kind).lower(PARAMS, state, *asked, KEY).compile().as_text()
    layers, pages, *page = state.pool.pages.shape
    run, whole = (",".join(map(str, shape)) for shape in ((layers * pages, *page), (layers, pages, *page)))
    assert f"[{run}]" in program or f"[{whole}]" in program  # or the next line would look for nothing
    copies = re.findall(rf"= \S*\[(?:{run}|{whole})\]\S* copy\(.*", program)
    assert not copies


def test_decode_loop_is_decode_steps_bit_for_bit():
    how = hot(3, [7, 8])
    state, _ = prefilled(A, B)
    rows = decode_rows([A, B], [9, 5], rows=3, how=how)
    looped, tokens, logprobs = STEPS.decode_loop(PARAMS, copied(state), rows, 4, KEY, max_steps=6)
    for index in range(4):
        rows = decode_rows([A, B], [9 + index, 5 + index], rows=3, how=how)
        state, tokens_B, logprobs_B = STEPS.decode(PARAMS, state, rows, KEY)
        np.testing.assert_array_equal(tokens[index, :2], tokens_B[:2])
        np.testing.assert_array_equal(logprobs[index, :2], logprobs_B[:2])
    assert not tokens[4:].any()
    jax.tree.map(np.testing.assert_array_equal, looped.pool, state.pool)
    np.testing.assert_array_equal(looped.last_tokens[:SLOTS], state.last_tokens[:SLOTS])


def test_a_prompt_in_chunks_gives_the_tokens_of_the_whole_prompt():
    whole, want = prefilled(C)
    state = empty_state()
    for start, end in ((0, 3), (3, 8), (8, 12)):
        state, tokens, _ = STEPS.prefill(PARAMS, state, prefill_rows([(C, start, end)], tokens=32, rows=3), KEY)
    assert tokens[0] == want[0] == state.last_tokens[C.slot]
    for pages, other in zip(whole.pool.pages, state.pool.pages, strict=True):
        np.testing.assert_allclose(pages, other, atol=1e-5)


def test_a_mixed_step_is_a_decode_step_and_a_prefill_step():
    state, _ = prefilled(A, B)
    decode, chunk = decode_rows([A, B], [9, 5], rows=3), prefill_rows([(C, 0, 12)], tokens=32, rows=3)
    mixed, tokens, logprobs = STEPS.mixed(PARAMS, copied(state), decode, chunk, KEY)
    state, decode_tokens, decode_logprobs = STEPS.decode(PARAMS, state, decode, KEY)
    state, chunk_tokens, chunk_logprobs = STEPS.prefill(PARAMS, state, chunk, KEY)
    np.testing.assert_array_equal(tokens[:2], decode_tokens[:2])
    np.testing.assert_allclose(logprobs[:2], decode_logprobs[:2], atol=LOGPROB_TOLERANCE)
    assert tokens[3] == chunk_tokens[0]
    np.testing.assert_allclose(logprobs[3], chunk_logprobs[0], atol=LOGPROB_TOLERANCE)
    np.testing.assert_array_equal(mixed.last_tokens[:SLOTS], state.last_tokens[:SLOTS])
    for pages, other in zip(mixed.pool.pages, state.pool.pages, strict=True):
        np.testing.assert_allclose(pages, other, atol=1e-5)


def test_a_request_draws_the_same_tokens_alone_and_in_company():
    together, first = prefilled(A, B, C, how=hot(3, [1, 2, 3]))
    rows = decode_rows([A, B, C], [9, 5, 12], rows=3, how=hot(3, [1, 2, 3]))
    _, tokens, _ = STEPS.decode_loop(PARAMS, together, rows, 6, KEY, max_steps=6)
    alone, first_alone = prefilled(B, how=hot(3, [2]))
    _, tokens_alone, _ = STEPS.decode_loop(
        PARAMS, alone, decode_rows([B], [5], rows=3, how=hot(3, [2])), 6, KEY, max_steps=6
    )
    assert first_alone[0] == first[1]
    np.testing.assert_array_equal(tokens_alone[:, 0], tokens[:, 1])
    assert len(set(tokens[:, 0].tolist())) > 1  # the draws are not one token over and over


def test_a_chunk_that_does_not_end_its_prompt_leaves_the_slot_alone():
    state, first = prefilled(A)
    state, _, _ = STEPS.prefill(PARAMS, state, prefill_rows([(C, 0, 7)], tokens=32, rows=3), KEY)
    assert state.last_tokens[A.slot] == first[0]
    assert state.last_tokens[C.slot] == 0


def test_padding_writes_no_page_and_no_slot():
    state, _ = prefilled(A)
    before = copied(state)
    state, _, _ = STEPS.prefill(PARAMS, state, prefill_rows([], tokens=32, rows=3), KEY)
    state, _, _ = STEPS.decode(PARAMS, state, decode_rows([], [], rows=3), KEY)
    jax.tree.map(np.testing.assert_array_equal, state.pool, before.pool)
    np.testing.assert_array_equal(state.last_tokens[:SLOTS], before.last_tokens[:SLOTS])


@pytest.mark.parametrize("position", [24, 4 * TABLE_PAGES, 10_000])
def test_a_token_without_a_page_is_not_written_anywhere(position):
    """Entry -1 of the table, and positions past its end, must not wrap around or clip to another token's page."""
    state, _ = prefilled(A)
    before = copied(state)
    state, _, _ = STEPS.decode(PARAMS, state, decode_rows([A], [position], rows=3), KEY)
    jax.tree.map(np.testing.assert_array_equal, state.pool, before.pool)


def test_a_step_writes_only_the_pages_it_was_given():
    state, _ = prefilled(A, B)
    before = copied(state)
    state, _, _ = STEPS.decode(PARAMS, state, decode_rows([A], [9], rows=3), KEY)
    for pages, old in zip(state.pool.pages, before.pool.pages, strict=True):
        changed = np.argwhere((np.asarray(pages) != np.asarray(old)).any(axis=(2, 3, 4)))
        assert changed.tolist() == [[A.pages[2], 1]]  # position 9 is offset 1 of the third page


def test_no_layers_pages_are_copied():
    """The compiled program's own memory is a layer's weights (a CPU copies a scan's operands), not a layer's pages."""
    wide = dataclasses.replace(TINY, hidden=512, heads=8, head_size=64, ffn=1024)
    params = abstract(wide, jnp.float32)
    state = jax.eval_shape(lambda: init_state(wide, pages=20000, page_tokens=4, slots=SLOTS, dtype=jnp.float32))
    rows = decode_rows([A], [9], rows=3)
    memory = make_steps(wide).decode_loop.lower(params, state, rows, 2, KEY, max_steps=6).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 4 * state.pool.pages.size
    one_layer = sum(leaf.size for leaf in jax.tree.leaves(params.layers)) // wide.layers
    assert memory.temp_size_in_bytes < 4 * min(2 * one_layer, state.pool.pages.size // wide.layers)


def test_a_step_consumes_its_state():
    state, _ = prefilled(A)
    STEPS.decode(PARAMS, state, decode_rows([A], [9], rows=3), KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_other_values_compile_nothing():
    sizes = []
    for count, positions in ((1, [9, 5]), (2, [10, 6]), (np.int32(3), [12, 8])):
        state, _ = prefilled(A, B)
        rows = decode_rows([A, B], positions, rows=3, how=hot(3, [count, count]))
        state, _, _ = STEPS.decode_loop(PARAMS, state, rows, int(count), KEY, max_steps=6)
        STEPS.decode(PARAMS, state, decode_rows([A], [positions[0]], rows=3), KEY)
        sizes.append((STEPS.prefill._cache_size(), STEPS.decode_loop._cache_size(), STEPS.decode._cache_size()))
    assert len(set(sizes)) == 1, sizes


def test_bf16_weights_and_pages_stay_close_to_f32():
    prefill = prefill_rows([(A, 0, 9), (C, 0, 12)], tokens=32, rows=3)
    _, _, exact = STEPS.prefill(PARAMS, empty_state(), prefill, KEY)
    rounded = random_params(dtype=jnp.bfloat16)
    state, _, logprobs = STEPS.prefill(rounded, empty_state(dtype=jnp.bfloat16), prefill, KEY)
    assert state.pool.pages.dtype == jnp.bfloat16
    np.testing.assert_allclose(logprobs[:2], exact[:2], atol=0.1)
