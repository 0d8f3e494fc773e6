"""Sampling against plain NumPy filters, and independence of the batch."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanoserve.model.sampling import keep, most_likely, sample, sampler_for
from tests.model.factories import KEY, sampling

VOCAB = 12
LOGITS = np.random.default_rng(0).normal(0, 2, VOCAB).astype(np.float32)
run = jax.jit(sample)
run_keep = jax.jit(keep)


def numpy_probabilities(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """What a token's probability should be: the filters of Hugging Face, in its order, in float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-scaled)
    allowed = order[: top_k or len(order)]
    probs = np.exp(scaled[allowed] - scaled.max())
    probs /= probs.sum()
    allowed = allowed[: np.searchsorted(np.cumsum(probs), top_p) + 1]
    allowed = [token for token in allowed if np.exp(scaled[token] - scaled.max()) >= min_p]
    result = np.zeros(len(order))
    result[allowed] = np.exp(scaled[allowed] - scaled.max())
    return result / result.sum()


FILTERS = {
    "none": {},
    "hot": {"temperature": 3.0},
    "cold": {"temperature": 0.3},
    "top_k": {"top_k": 3},
    "top_k_of_all": {"top_k": 99},
    "top_p": {"top_p": 0.7},
    "top_p_of_one_token": {"top_p": 1e-6},
    "min_p": {"min_p": 0.2},
    "all": {"temperature": 2.0, "top_k": 8, "top_p": 0.9, "min_p": 0.1},
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_leave_the_probabilities_of_the_reference(name):
    columns = {"temperature": 1.0} | FILTERS[name]
    scaled = jnp.asarray(LOGITS / np.float32(columns["temperature"]))[None]
    got = jax.nn.softmax(run_keep(scaled, sampling(1, **columns)))[0]
    np.testing.assert_allclose(got, numpy_probabilities(LOGITS, **columns), atol=1e-6)


@pytest.mark.parametrize("name", ["none", "all"])
def test_draws_follow_the_distribution(name):
    columns, draws = {"temperature": 1.0} | FILTERS[name], 4000
    logits = jnp.broadcast_to(LOGITS, (draws, VOCAB))
    tokens, _ = run(logits, sampling(draws, **columns, seed=np.arange(draws)), jnp.full(draws, 5), KEY)
    want = numpy_probabilities(LOGITS, **columns)
    counts = np.bincount(tokens, minlength=VOCAB)
    assert counts[want == 0].sum() == 0
    # Five standard deviations of a binomial count: one false alarm in a million draws of the key.
    assert (np.abs(counts - draws * want) <= 5 * np.sqrt(draws * want * (1 - want)) + 1).all()


def test_temperature_zero_takes_the_most_likely_token_beside_rows_that_draw():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, VOCAB)), jnp.float32)
    how = sampling(4, temperature=[0.0, 5.0, 0.0, 5.0], seed=np.arange(4))
    tokens, _ = run(logits, how, jnp.arange(4), KEY)
    np.testing.assert_array_equal(tokens[::2], jnp.argmax(logits, axis=-1)[::2])


def test_the_smallest_temperature_is_greedy_and_finite():
    tokens, logprobs = run(jnp.asarray(LOGITS)[None] * 100, sampling(1, temperature=1e-38), jnp.zeros(1, int), KEY)
    assert tokens[0] == LOGITS.argmax()
    assert np.isfinite(logprobs).all()


def test_a_row_draws_the_same_token_in_any_row_and_beside_any_neighbour():
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(6, VOCAB)), jnp.float32)
    positions, seeds = jnp.asarray(rng.integers(0, 100, 6)), rng.integers(0, 2**32, 6)
    columns = {
        "temperature": np.array([1.0, 1.0, 0.0, 2.0, 1.5, 1.0]),
        "top_k": np.array([0, 3, 0, 0, 5, 0]),
        "top_p": np.array([1.0, 1.0, 1.0, 0.8, 1.0, 1.0]),
        "seed": seeds,
    }
    together, logprobs = run(logits, sampling(6, **columns), positions, KEY)
    shuffled = rng.permutation(6)
    moved = {name: column[shuffled] for name, column in columns.items()}
    again, logprobs_again = run(logits[shuffled], sampling(6, **moved), positions[shuffled], KEY)
    np.testing.assert_array_equal(again, together[shuffled])
    np.testing.assert_array_equal(logprobs_again, logprobs[shuffled])
    for row in range(6):
        alone = {name: column[row : row + 1] for name, column in columns.items()}
        token, _ = run(logits[row : row + 1], sampling(1, **alone), positions[row : row + 1], KEY)
        assert token[0] == together[row]


def test_seed_position_and_key_each_change_the_draw():
    draws = 64
    logits = jnp.zeros((draws, VOCAB))
    base, _ = run(logits, sampling(draws, temperature=1.0, seed=np.arange(draws)), jnp.arange(draws), KEY)
    others = {
        "seed": (sampling(draws, temperature=1.0, seed=np.arange(draws) + 500), jnp.arange(draws), KEY),
        "position": (sampling(draws, temperature=1.0, seed=np.arange(draws)), jnp.arange(draws) + 500, KEY),
        "key": (sampling(draws, temperature=1.0, seed=np.arange(draws)), jnp.arange(draws), jax.random.key(1)),
    }
    for name, arguments in others.items():
        tokens, _ = run(logits, *arguments)
        assert (np.asarray(tokens) == np.asarray(base)).mean() < 0.5, name


def test_log_probabilities_are_the_models_own():
    how = sampling(1, temperature=3.0, top_k=2)
    tokens, logprobs = run(jnp.asarray(LOGITS)[None], how, jnp.zeros(1, int), KEY)
    np.testing.assert_allclose(logprobs[0], np.log(numpy_probabilities(LOGITS)[tokens[0]]), atol=1e-6)


top_ps = st.sampled_from([0.05, 0.5, 0.9, 1.0])


@hypothesis.given(seed=st.integers(0, 999), top_k=st.integers(0, 40), top_p=top_ps, levels=st.integers(2, 40))
@hypothesis.settings(max_examples=40)
def test_what_is_kept_is_what_a_sort_would_keep_ties_included(seed, top_k, top_p, levels):
    logits = np.random.default_rng(seed).integers(-levels, levels, (1, 32)).astype(np.float32) / 4
    ordered = np.sort(logits[0])[::-1].astype(np.float64)
    inside = ordered[ordered >= ordered[min(top_k or 32, 32) - 1]]
    weights = np.exp(inside)
    before = (np.cumsum(weights) - weights) / weights.sum()
    hypothesis.assume(np.abs(before - top_p).min() > 1e-5)  # nearer than that, float32 sums decide
    least = inside[(before < top_p) | (top_p >= 1)].min()
    got = run_keep(jnp.asarray(logits), sampling(1, temperature=1.0, top_k=top_k, top_p=top_p))
    np.testing.assert_array_equal(np.isfinite(got), logits >= least)


def test_the_most_likely_token_is_what_a_row_without_temperature_samples_bit_for_bit():
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 2, (64, VOCAB)), jnp.float32).at[5].set(1.0)  # a tie
    rows = sampling(64, temperature=0.0), jnp.arange(64), KEY
    for got, want in zip(jax.jit(most_likely)(logits, *rows), run(logits, *rows), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_run_where_nobody_draws_needs_no_condition():
    assert sampler_for(np.zeros(3, np.float32)) is most_likely
    assert sampler_for(np.array([0, 0.7, 0], np.float32)) is sample
    rows = jnp.zeros((2, VOCAB)), sampling(2), jnp.arange(2), KEY
    assert " cond[" in str(jax.make_jaxpr(sample)(*rows))
    assert " cond[" not in str(jax.make_jaxpr(most_likely)(*rows))
