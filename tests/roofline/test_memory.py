"""What fits: weights, pages, and the advice when it does not."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.roofline.memory import (
    MemoryPlan,
    activation_peak_bytes,
    headroom_bytes,
    max_batch,
    max_context,
    memory_plan,
    num_pages,
    weight_bytes_per_chip,
)
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import CapacityError
from nanoserve.specs.model_registry import model
from nanoserve.specs.sizes import weight_bytes
from tests.roofline import factories as make

GIB = 2**30


@given(spec=make.models, precision=make.precisions)
def test_one_chip_holds_all_the_weights(spec, precision):
    assert weight_bytes_per_chip(spec, precision) == weight_bytes(spec, precision)


@given(spec=make.models, precision=make.precisions, ways=st.sampled_from([2, 4, 8]))
def test_chips_together_hold_at_least_the_weights_and_each_less_than_all(spec, precision, ways):
    each = weight_bytes_per_chip(spec, precision, ways)
    assert weight_bytes(spec, precision) / ways <= each < weight_bytes(spec, precision)


def test_pages_of_llama_70b_on_eight_h100_follow_the_capacity_formula():
    spec = model("llama-3.1-70b")
    plan = memory_plan(spec, make.cluster(ways=8), make.BF16)
    assert plan.kv_bytes_per_token == 2 * 80 * 128 * 2  # one KV head a chip
    activations = activation_peak_bytes(spec, make.BF16, 8, 2048, 256)
    left = int(0.9 * 80 * GIB) - plan.weight_bytes - activations - int(3.5 * GIB) - int(0.4 * GIB)
    assert num_pages(spec, make.cluster(ways=8), make.BF16) == left // (16 * plan.kv_bytes_per_token)
    assert plan.weight_bytes == pytest.approx(70.6e9 * 2 / 8, rel=0.01)


def test_a_model_too_large_says_what_would_fit():
    with pytest.raises(CapacityError, match=r"llama-3.1-70b.* 1 x h100_sxm.*It fits with 4 chips.*or int4 weights"):
        num_pages(model("llama-3.1-70b"), make.cluster(), make.BF16)
    num_pages(model("llama-3.1-70b"), make.cluster(ways=4), make.BF16)
    num_pages(model("llama-3.1-70b"), make.cluster(), dataclasses.replace(make.BF16, weights="int4"))
    with pytest.raises(CapacityError):
        num_pages(model("gpt3-175b"), make.cluster(ways=4), make.BF16)


@given(
    pages=st.integers(0, 10_000),
    page_tokens=st.sampled_from([1, 16, 64]),
    batch=st.integers(1, 300),
    context=st.integers(1, 5000),
)
def test_the_most_that_fits_fits_and_one_more_does_not(pages, page_tokens, batch, context):
    plan = MemoryPlan(
        hbm_bytes=0,
        planned_bytes=pages * page_tokens * 8,
        weight_bytes=0,
        activation_bytes=0,
        runtime_bytes=0,
        page_bytes=page_tokens * 8,
        kv_bytes_per_token=8,
    )
    needed = -(-context // page_tokens)
    most = max_batch(plan, context)
    assert most * needed <= pages < (most + 1) * needed
    longest = max_context(plan, batch)
    assert batch * -(-longest // page_tokens) <= pages < batch * -(-(longest + 1) // page_tokens)


@given(
    pages=st.integers(0, 3000),
    page_tokens=st.sampled_from([1, 16]),
    groups=st.sampled_from([1, 2, 8]),
    batch=st.integers(1, 300),
    context=st.integers(1, 3000),
)
def test_the_envelope_ends_where_the_most_that_fits_does(pages, page_tokens, groups, batch, context):
    plan = MemoryPlan(
        hbm_bytes=0,
        planned_bytes=pages * page_tokens * 8,
        weight_bytes=0,
        activation_bytes=0,
        runtime_bytes=0,
        page_bytes=page_tokens * 8,
        kv_bytes_per_token=8,
        kv_groups=groups,
    )
    assert (headroom_bytes(plan, context, batch) >= 0) == (batch <= max_batch(plan, context))
    longest = max_context(plan, batch)
    assert headroom_bytes(plan, longest, batch) >= 0 > headroom_bytes(plan, longest + 1, batch)


def test_an_envelope_is_one_array():
    spec, cluster = model("llama-3.1-70b"), make.cluster(ways=8)
    plan = memory_plan(spec, cluster, make.BF16)
    contexts, batches = np.array([[1000], [100_000]]), np.array([[1, 64, 512]])
    left = headroom_bytes(plan, contexts, batches)
    assert left.shape == (2, 3)
    assert left.tolist() == [[headroom_bytes(plan, c, b) for b in (1, 64, 512)] for c in (1000, 100_000)]
    assert left[0, 0] == plan.kv_bytes - 63 * plan.page_bytes


def test_quantised_kv_takes_memory_for_its_factors():
    """A head of 128 in 8 bits, and 4 bytes for its factor: 33/32 of half of bf16."""
    llama, cluster = model("llama-3.1-8b"), ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 1})
    exact, small = (memory_plan(llama, cluster, Precision(kv=kv)).kv_bytes_per_token for kv in ("bf16", "int8"))
    assert small / exact == 33 / 64
