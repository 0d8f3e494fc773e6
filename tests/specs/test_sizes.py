"""Sizes against models that transformers builds, a published table, and worked examples."""

import dataclasses
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.specs.chips import Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model, model_names
from nanoserve.specs.models import ModelSpec, MoeSpec
from nanoserve.specs.sizes import (
    expert_parameters,
    kv_bytes_per_token,
    matrix_parameters,
    parameter_counts,
    weight_bytes,
)

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "huggingface.json").read_text())


@pytest.mark.parametrize("name", GOLDEN["published"])
def test_total_equals_the_model_that_transformers_builds(name: str):
    assert parameter_counts(model(name)).total == GOLDEN["cases"][name]["parameters"]


def test_gpt3_total_equals_the_gpt2_of_its_shape_and_the_paper():
    total = parameter_counts(model("gpt3-175b")).total
    assert total == GOLDEN["gpt3-175b"]["parameters"]
    assert round(total / 1e6, -2) == 174_600  # Brown et al. 2020, table D.1


@pytest.mark.parametrize("name", model_names())
def test_parts_add_up_to_the_total(name: str):
    spec, counts = model(name), parameter_counts(model(name))
    dense_layers = spec.moe.dense_layers if spec.moe else 0
    layers = spec.layers * (counts.attention_per_layer + counts.vectors_per_layer)
    layers += dense_layers * counts.dense_mlp_per_layer
    layers += (spec.layers - dense_layers) * (counts.mlp_per_layer + counts.router_per_layer)
    whole = counts.embedding + counts.positions + counts.head + counts.final_norm
    assert counts.total == whole + layers


def test_tied_head_costs_nothing_and_an_untied_one_costs_the_table():
    tied = model("llama-3.2-1b")
    untied = dataclasses.replace(tied, tied_embeddings=False)
    assert parameter_counts(tied).head == 0
    assert parameter_counts(untied).total - parameter_counts(tied).total == 128256 * 2048


def test_a_token_of_mixtral_meets_two_of_eight_experts():
    spec = model("mixtral-8x7b")
    counts = parameter_counts(spec)
    assert counts.mlp_per_layer == 8 * expert_parameters(spec) == 8 * 3 * 4096 * 14336
    assert counts.router_per_layer == 4096 * 8
    assert counts.total - counts.active == 32 * 6 * expert_parameters(spec)


def test_shared_experts_are_always_active():
    plain = model("mixtral-8x7b")
    shared = dataclasses.replace(plain, moe=MoeSpec(experts=8, top_k=2, ffn=14336, shared=1))
    more = 32 * expert_parameters(plain)
    assert parameter_counts(shared).total - parameter_counts(plain).total == more
    assert parameter_counts(shared).active - parameter_counts(plain).active == more


@pytest.mark.parametrize(
    ("name", "dtype", "tokens", "expected"),
    [
        ("llama-2-13b", "f16", 4096, 3_355_443_200),
        ("llama-3.1-70b", "bf16", 4096, 1_342_177_280),
        ("llama-3.1-70b", "int8", 1, 163_840),
        ("gpt3-175b", "f16", 1, 2 * 2 * 96 * 12288),
        ("tiny-llama", "int4", 1, 64),
    ],
)
def test_kv_bytes_of_worked_examples(name: str, dtype: str, tokens: int, expected: int):
    assert tokens * kv_bytes_per_token(model(name), dtype) == expected


def test_quantised_weights_leave_embedding_head_and_norms_in_bf16():
    spec = model("llama-3.1-8b")
    counts = parameter_counts(spec)
    matrices = matrix_parameters(spec)
    rest = 2 * 128256 * 4096 + (32 * 2 + 1) * 4096
    assert counts.total == matrices + rest
    assert weight_bytes(spec, Precision(weights="fp8")) == matrices + 2 * rest
    assert weight_bytes(spec, Precision(weights="int4")) == matrices // 2 + matrices // 128 * 2 + 2 * rest


def test_unquantised_weights_take_one_dtype_throughout():
    spec = model("llama-3.1-8b")
    total = parameter_counts(spec).total
    assert weight_bytes(spec, Precision()) == 2 * total
    assert weight_bytes(spec, Precision(weights="f32", activations="bf16")) == 4 * total


def test_router_is_not_quantised():
    spec = model("mixtral-8x7b")
    assert matrix_parameters(spec) == 32 * (2 * 4096 * (4096 + 1024) + 8 * 3 * 4096 * 14336)


def test_unknown_dtype_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'bf61'.*'bf16'"):
        kv_bytes_per_token(model("tiny-llama"), "bf61")


@st.composite
def shapes(draw: st.DrawFn) -> ModelSpec:
    size = st.integers(1, 64)
    return dataclasses.replace(
        model("tiny-llama"),
        layers=draw(size),
        hidden=draw(size),
        kv_heads=(kv_heads := draw(size)),
        heads=kv_heads * draw(st.integers(1, 8)),
        head_size=draw(size),
        ffn=draw(size),
        vocab=draw(size),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


@given(shapes())
def test_a_mixture_of_one_expert_is_the_dense_model_and_its_router(spec: ModelSpec):
    one_expert = dataclasses.replace(spec, moe=MoeSpec(experts=1, top_k=1, ffn=spec.ffn))
    router = spec.layers * spec.hidden
    assert parameter_counts(one_expert).total == parameter_counts(spec).total + router
    assert parameter_counts(one_expert).active == parameter_counts(one_expert).total


@given(shapes())
def test_narrower_storage_is_never_larger(spec: ModelSpec):
    sizes = [weight_bytes(spec, Precision(weights=dtype)) for dtype in ("f32", "bf16", "fp8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
