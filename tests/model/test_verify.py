"""Verification gives what decode steps give one by one, and a draft model's loop writes the KV that they write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanoserve.model.step import make_steps
from nanoserve.model.verify import DraftRows, VerifyRows, make_speculative_steps
from tests.model.factories import (
    KEY,
    PAGE_TOKENS,
    SLOTS,
    TINY,
    Sequence,
    decode_rows,
    empty_state,
    prefill_rows,
    random_params,
    sampling,
    sequence,
)

STEPS, SPECULATIVE = make_steps(TINY), make_speculative_steps(TINY)
PARAMS = random_params()
A, B, C = sequence(0, 9), sequence(3, 5), sequence(4, 12)
SEEDS = [7, 8]
COUNT = 4
TOLERANCE = 1e-5  # other shapes may add in another order


def hot(seeds: list[int], rows: int):
    return sampling(rows, temperature=1.0, seed=np.pad(np.array(seeds), (0, rows - len(seeds))))


def greedy(seeds: list[int], rows: int):
    return sampling(rows, seed=np.pad(np.array(seeds), (0, rows - len(seeds))))


def prefilled(how):
    """A state in which the prompts of A and B are written, and their first tokens."""
    chunks = [(s, 0, len(s.tokens)) for s in (A, B)]
    rows = prefill_rows(chunks, tokens=32, rows=3, how=how(SEEDS, 3))
    state, tokens, _ = STEPS.prefill(PARAMS, empty_state(), rows, KEY)
    return state, np.asarray(tokens)[:2].tolist()


def one_by_one(state, how):
    """What decode steps give A and B: the state, and tokens by sequence."""
    rows = decode_rows([A, B], [9, 5], rows=3, how=how(SEEDS, 3))
    state, tokens, logprobs = STEPS.decode_loop(PARAMS, state, rows, COUNT, KEY, max_steps=COUNT)
    return state, np.asarray(tokens).T[:2].tolist(), np.asarray(logprobs).T[:2]


def continued(s: Sequence, tokens: list[int]) -> Sequence:
    """The sequence with more tokens, in the same slot and pages."""
    return Sequence(s.slot, (*s.tokens, *tokens), s.pages)


def verify_rows(rows: list[tuple[Sequence, int, int]], how, *, padded: int = 32, samples: int = 12) -> VerifyRows:
    """Rows `(sequence, first position, seed)` that are sampled after each of their tokens from there on."""
    lengths = [len(s.tokens) - start for s, start, _ in rows]
    seeds = [seed for length, (_, _, seed) in zip(lengths, rows, strict=True) for _ in range(length)]
    sampled = np.pad(np.arange(len(seeds), dtype=np.int32), (0, samples - len(seeds)))
    chunks = prefill_rows([(s, start, len(s.tokens)) for s, start, _ in rows], tokens=padded, rows=3)
    return VerifyRows(chunks=chunks, sampled_S=sampled, sampling=how(seeds, samples))


def written(state, s: Sequence, length: int) -> np.ndarray:
    """KV of the first `length` positions of a sequence, of all layers."""
    pages = np.asarray(state.pool.pages)[:, list(s.pages)]
    return pages.reshape(pages.shape[0], -1, *pages.shape[3:])[:, :length]


@pytest.mark.parametrize("how", [greedy, hot])
def test_verifying_the_right_tokens_samples_those_of_decode_steps(how):
    state, first = prefilled(how)
    expected, tokens, logprobs = one_by_one(jax.tree.map(jnp.copy, state), how)
    rows = [
        (continued(s, [first[place], *tokens[place][: COUNT - 1]]), len(s.tokens), seed)
        for place, (s, seed) in enumerate(zip((A, B), SEEDS, strict=True))
    ]
    state, got, got_logprobs = SPECULATIVE.verify(PARAMS, state, verify_rows(rows, how), KEY)
    assert np.asarray(got)[: 2 * COUNT].tolist() == tokens[0] + tokens[1]
    np.testing.assert_allclose(np.asarray(got_logprobs)[: 2 * COUNT], logprobs.ravel(), atol=TOLERANCE)
    for s in (A, B):
        length = len(s.tokens) + COUNT
        np.testing.assert_allclose(written(state, s, length), written(expected, s, length), atol=TOLERANCE)


@pytest.mark.parametrize("how", [greedy, hot])
@pytest.mark.parametrize("wrong_at", range(COUNT - 1))
def test_a_wrong_token_changes_nothing_before_it_and_is_written_over(how, wrong_at):
    """Up to and with the token sampled in place of the wrong one, all is as without drafts; so is the next step."""
    state, first = prefilled(how)
    expected, tokens, _ = one_by_one(jax.tree.map(jnp.copy, state), how)
    drafts = tokens[0][: COUNT - 1]
    drafts[wrong_at] = (drafts[wrong_at] + 1) % TINY.vocab
    row = continued(A, [first[0], *drafts]), len(A.tokens), SEEDS[0]
    state, got, _ = SPECULATIVE.verify(PARAMS, state, verify_rows([row], how), KEY)
    assert np.asarray(got)[: wrong_at + 1].tolist() == tokens[0][: wrong_at + 1]
    done = tokens[0][: wrong_at + 1]
    rest = continued(A, [first[0], *done, *tokens[0][wrong_at + 1 : COUNT - 1]]), len(A.tokens) + len(done), SEEDS[0]
    state, got, _ = SPECULATIVE.verify(PARAMS, state, verify_rows([rest], how), KEY)
    assert np.asarray(got)[: COUNT - len(done)].tolist() == tokens[0][wrong_at + 1 :]
    length = len(A.tokens) + COUNT
    np.testing.assert_allclose(written(state, A, length), written(expected, A, length), atol=TOLERANCE)


def test_a_prompt_chunk_beside_verifying_rows_is_a_prompt_chunk():
    state, first = prefilled(hot)
    alone = prefill_rows([(C, 0, 12)], tokens=32, rows=3, how=hot([9], 3))
    _, want, _ = STEPS.prefill(PARAMS, jax.tree.map(jnp.copy, state), alone, KEY)
    rows = verify_rows([(continued(A, [first[0], 5, 6]), 9, 7), (C, 0, 9)], hot, samples=15)
    _, got, _ = SPECULATIVE.verify(PARAMS, state, rows, KEY)
    assert np.asarray(got)[14] == np.asarray(want)[0]


def drafted(state, first: list[int], drafts: list[int], how):
    """The draft loop on A and B, which want as many tokens as `drafts` says."""
    rows = DraftRows(
        decode=decode_rows([A, B], [9, 5], rows=3, how=how(SEEDS, 3)),
        tokens_B=np.array([*first, 0], np.int32),
        drafts_B=np.array([*drafts, -1], np.int32),
    )
    state, tokens = SPECULATIVE.draft(PARAMS, state, rows, KEY, max_drafts=COUNT)
    return state, np.asarray(tokens).T.tolist()


@pytest.mark.parametrize("how", [greedy, hot])
def test_a_draft_model_that_is_the_target_guesses_every_token(how):
    state, first = prefilled(how)
    expected, tokens, _ = one_by_one(jax.tree.map(jnp.copy, state), how)
    state, got = drafted(state, first, [COUNT, 2], how)
    assert got[0] == tokens[0] and got[1][:2] == tokens[1][:2]
    np.testing.assert_array_equal(written(state, A, 9 + COUNT), written(expected, A, 9 + COUNT))


def test_a_draft_loop_writes_one_position_more_than_it_drafts_and_none_beyond():
    """The last drafted token's KV is there when all are accepted; pages past the row's are not touched."""
    state, first = prefilled(greedy)
    before = np.asarray(state.pool.pages).copy()
    state, _ = drafted(state, first, [2, 0], greedy)
    changed = np.argwhere((np.asarray(state.pool.pages)[0] != before[0]).any(axis=(2, 3, 4)))
    wanted = [(A, 9), (A, 10), (A, 11), (B, 5)]
    places = sorted([s.pages[position // PAGE_TOKENS], position % PAGE_TOKENS] for s, position in wanted)
    assert sorted(changed.tolist()) == places
    assert np.asarray(state.last_tokens).shape == (SLOTS + 1,)
