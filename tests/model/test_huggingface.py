"""Logits and greedy tokens equal to what Hugging Face computed (`record_hf.py` wrote the recordings)."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanoserve.model import decoder
from nanoserve.model.attention import attention_for
from nanoserve.model.params import Params, from_tensors
from nanoserve.model.pool import slots_of
from nanoserve.model.sampling import greedy
from nanoserve.model.step import DecodeRows, PrefillRows, init_state, make_steps
from nanoserve.specs.models import ModelSpec, MoeSpec
from nanoserve.weights.open import open_weights, spec_of

HF = pathlib.Path(__file__).parent / "hf"
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "phi3", "mixtral", "qwen3_moe", "gemma2", "gemma3")
LOGITS_TOLERANCE = 2e-4
PAGE_TOKENS, TABLE = 4, (7, 2, 11, 0, 5, 9, 1, 10, 3)  # pages of the only sequence, in an order of no meaning
PAGES = 12


def load(name: str) -> tuple[ModelSpec, Params, dict]:
    spec = spec_of(HF / name)
    params = from_tensors(spec, open_weights(HF / name, spec), jnp.float32)
    return spec, params, json.loads((HF / f"{name}.json").read_text())


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def run_chunk(spec: ModelSpec, params: Params, pool, tokens_T, positions_T):
    """Logits of one chunk of the only sequence, and the new pages; a chunk of one token is a decode step.

    Compiled without the backend's optimisations: half the time of these tests, and the same numbers to 1e-5.
    """
    attention, table = attention_for(spec), jnp.array([TABLE], jnp.int32)
    kv_len, count = positions_T[-1:] + 1, len(tokens_T)
    bounds = jnp.array([0, count], jnp.int32)
    slots = slots_of(pool, table, jnp.zeros(count, jnp.int32), positions_T, jnp.ones(count, bool))
    one = count == 1
    part = attention.decode(pool, table, kv_len) if one else attention.prefill(pool, count, table, kv_len, bounds)
    x_TD, pool = decoder.forward(spec, params, pool, tokens_T, positions_T, attention.attend(slots, [part]))
    return decoder.logits(spec, params, x_TD), pool


def paged_logits(spec: ModelSpec, params: Params, tokens: list[int], ends: list[int]) -> np.ndarray:
    """Logits [tokens, V] computed in chunks that end at `ends`, each over the pages that the ones before it wrote."""
    pool = init_state(spec, pages=PAGES, page_tokens=PAGE_TOKENS, slots=1, dtype=jnp.float32).pool
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        logits, pool = run_chunk(spec, params, pool, np.array(tokens[start:end]), np.arange(start, end))
        parts.append(np.asarray(logits))
    return np.concatenate(parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_match_however_the_sequence_is_cut_into_steps(name):
    spec, params, recorded = load(name)
    tokens, prompt = recorded["tokens"], recorded["prompt_tokens"]
    in_chunks_then_one_by_one = [6, 12, 18, *range(prompt, len(tokens) + 1)]
    for ends in ([len(tokens)], in_chunks_then_one_by_one):
        got = paged_logits(spec, params, tokens, ends)
        np.testing.assert_allclose(got, recorded["logits"], atol=LOGITS_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_prefill_step_and_decode_loop_give_the_greedy_tokens(name):
    spec, params, recorded = load(name)
    tokens, prompt = recorded["tokens"], recorded["prompt_tokens"]
    generated = len(tokens) - prompt
    steps, key = make_steps(spec), jax.random.key(0)
    state = init_state(spec, pages=PAGES, page_tokens=PAGE_TOKENS, slots=1, dtype=jnp.float32)
    table, slot = np.array([TABLE], np.int32), np.zeros(1, np.int32)
    prefill = PrefillRows(
        tokens_T=np.array(tokens[:prompt], np.int32),
        positions_T=np.arange(prompt, dtype=np.int32),
        cu_q_lens=np.array([0, prompt], np.int32),
        kv_lens_R=np.array([prompt], np.int32),
        page_table_RN=table,
        slots_R=slot,
        samples_R=np.array([True]),
        sampling=greedy(1),
    )
    state, first, first_logprob = steps.prefill(params, state, prefill, key)
    decode = DecodeRows(slot, np.array([prompt], np.int32), table, np.array([True]), greedy(1))
    state, rest, logprobs = steps.decode_loop(params, state, decode, generated - 1, key, max_steps=generated)
    assert [int(first[0]), *rest[: generated - 1, 0].tolist()] == tokens[prompt:]
    # The recorded logits are rounded to 1e-6, so their log-probabilities are the truth for ours.
    rows = np.array(recorded["logits"])[prompt - 1 : -1]
    want = rows.max(axis=1) - np.log(np.exp(rows).sum(axis=1))
    got = np.array([first_logprob[0], *logprobs[: generated - 1, 0]])
    np.testing.assert_allclose(got, want, atol=LOGITS_TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rope_scaling": None}),
        ("mistral", {"sliding_window_tokens": None}),
        ("mistral", {"sliding_window_tokens": 7}),
        ("phi3", {"sliding_window_tokens": None}),
        ("mixtral", {"moe": MoeSpec(experts=5, top_k=2, ffn=96, normalised=False)}),
        ("qwen3_moe", {"moe": MoeSpec(experts=6, top_k=3, ffn=40)}),
        ("gemma2", {"full_attention_every": 3}),
        ("gemma2", {"attention_soft_cap": None}),
        ("gemma2", {"logits_soft_cap": None}),
        ("gemma3", {"local_rope_theta": None}),
        ("gemma3", {"query_scalar": None}),
    ],
)
def test_the_recordings_notice_a_wrong_spec(name, change):
    """The comparison above can fail: each of these parts moves the logits by far more than the tolerance."""
    spec, params, recorded = load(name)
    got = paged_logits(dataclasses.replace(spec, **change), params, recorded["tokens"], [len(recorded["tokens"])])
    assert np.abs(got - recorded["logits"]).max() > 20 * LOGITS_TOLERANCE


@pytest.mark.parametrize(("name", "field"), [("qwen2", "bqkv"), ("qwen3", "q_norm"), ("qwen3", "k_norm")])
def test_the_recordings_notice_missing_weights(name, field):
    spec, params, recorded = load(name)
    neutral = jnp.zeros_like if field == "bqkv" else jnp.ones_like
    layers = params.layers.replace(**{field: neutral(getattr(params.layers, field))})
    got = paged_logits(spec, params.replace(layers=layers), recorded["tokens"], [len(recorded["tokens"])])
    assert np.abs(got - recorded["logits"]).max() > 20 * LOGITS_TOLERANCE
