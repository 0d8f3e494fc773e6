"""The cost model against the real forward pass: the same FLOPs, and the bytes of the arrays that it reads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas.paged_attention.xla import chunk_tokens
from nanoserve.model.flops import dot_general_flops
from nanoserve.model.params import abstract
from nanoserve.model.step import init_state, make_steps
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.matrices import attention_flops, matmul_flops
from nanoserve.roofline.op import totals
from nanoserve.roofline.ops import step_ops
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model
from nanoserve.specs.models import ModelSpec
from tests.model.factories import KEY, SLOTS, TABLE_PAGES, decode_rows, prefill_rows

PAGE_TOKENS, PAGES = 4, 40
ROWS, TOKENS, CHUNKS, LOOP = 3, 16, 2, 5
FAMILIES = [
    "tiny-llama",
    "smollm2-135m",
    "llama-3.1-8b",
    "llama-2-70b",
    "qwen2.5-1.5b",
    "qwen3-8b",
    "mistral-7b-v0.1",
    "phi-3-mini",
]
WITH_EXPERTS = ["mixtral-8x7b", "qwen3-30b-a3b"]
GATHERED = chunk_tokens(PAGE_TOKENS, TABLE_PAGES)  # one chunk of KV covers the whole page table
BF16 = Precision()
CHIP = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 1})


def traced(spec: ModelSpec, kind: str):
    """The jaxpr of one step of `kind`, from shapes alone."""
    params = abstract(spec, jnp.bfloat16)
    state = jax.eval_shape(
        lambda: init_state(spec, pages=PAGES, page_tokens=PAGE_TOKENS, slots=SLOTS, dtype=jnp.bfloat16)
    )
    steps = make_steps(spec)
    decode, prefill = decode_rows([], [], rows=ROWS), prefill_rows([], tokens=TOKENS, rows=CHUNKS)
    step, rows, options = {
        "decode": (steps.decode, (decode,), {}),
        "prefill": (steps.prefill, (prefill,), {}),
        "mixed": (steps.mixed, (decode, prefill), {}),
        "loop": (steps.decode_loop, (decode, np.int32(LOOP)), {"max_steps": LOOP}),
    }[kind]
    return step.trace(params, state, *rows, KEY, **options).jaxpr


def executed(kind: str) -> tuple[int, int, int]:
    """Tokens, sampled rows and query-key pairs that a step of `kind` computes, padding included, in one device step."""
    blocks = TOKENS  # queries of one block; the loop over blocks is data-dependent and counted once
    decode, prefill = (ROWS, ROWS, ROWS * GATHERED), (TOKENS, CHUNKS, blocks * GATHERED)
    if kind == "mixed":
        return tuple(a + b for a, b in zip(decode, prefill, strict=True))
    return prefill if kind == "prefill" else decode


@pytest.mark.parametrize("name", FAMILIES + WITH_EXPERTS)
@pytest.mark.parametrize("kind", ["decode", "prefill", "mixed", "loop"])
def test_matrix_product_flops_are_those_of_the_forward_pass(name, kind):
    spec = model(name)
    counted = dot_general_flops(traced(spec, kind))
    tokens, sampled, pairs = executed(kind)
    attention = sum(flops for scope, flops in counted.items() if "_attention" in scope)
    assert counted.total() - attention == matmul_flops(spec, tokens, sampled)
    assert attention == attention_flops(spec, pairs)


@pytest.mark.parametrize("name", FAMILIES + WITH_EXPERTS)
def test_a_step_is_priced_with_those_flops(name):
    spec = model(name)
    counts = StepCounts(decode_seqs=ROWS, decode_kv_tokens=ROWS * 9, decode_window_tokens=ROWS * 9, sampled=ROWS)
    priced = totals(step_ops(spec, CHIP, BF16, counts))
    assert priced.matmul_flops == matmul_flops(spec, ROWS, ROWS)
    assert priced.attention_flops == attention_flops(spec, ROWS * 9)


@pytest.mark.parametrize("name", FAMILIES)
def test_weight_bytes_are_those_of_the_arrays_a_step_reads(name):
    """All of the weights, once; of an embedding table that is not also the head, only the rows of the step's tokens."""
    spec = model(name)
    params = abstract(spec, jnp.bfloat16)
    read = dataclasses.replace(params, embed=params.embed if spec.tied_embeddings else None)
    arrays = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(read))
    counts = StepCounts(decode_seqs=ROWS, decode_kv_tokens=ROWS, decode_window_tokens=ROWS, sampled=ROWS)
    assert totals(step_ops(spec, CHIP, BF16, counts)).weight_bytes == arrays + 2 * ROWS * spec.hidden


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_weight_bytes_of_enough_tokens_are_those_of_all_experts(name):
    spec = model(name)
    arrays = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract(spec, jnp.bfloat16)))
    tokens = 10_000  # each expert is then missed with a probability below 1e-9
    counts = StepCounts(decode_seqs=tokens, decode_kv_tokens=tokens, decode_window_tokens=tokens, sampled=tokens)
    table = 2 * spec.vocab * spec.hidden
    priced = totals(step_ops(spec, CHIP, BF16, counts)).weight_bytes
    assert priced == pytest.approx(arrays - table + 2 * tokens * spec.hidden, rel=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_kv_bytes_are_those_of_the_pages_a_step_reads_and_writes(name):
    spec = model(name)
    state = jax.eval_shape(
        lambda: init_state(spec, pages=PAGES, page_tokens=PAGE_TOKENS, slots=SLOTS, dtype=jnp.bfloat16)
    )
    pool_tokens = PAGES * PAGE_TOKENS
    counts = StepCounts(decode_seqs=1, decode_kv_tokens=pool_tokens, decode_window_tokens=pool_tokens, sampled=1)
    priced = totals(step_ops(spec, CHIP, BF16, counts))
    pool_bytes = state.pool.pages.size * state.pool.pages.dtype.itemsize
    assert priced.kv_read_bytes == pool_bytes
    assert priced.kv_write_bytes * pool_tokens == pool_bytes
