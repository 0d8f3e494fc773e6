"""Experts: expectations against drawing them, one group against exact arithmetic, and limits that always hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.roofline.moe import busiest_experts, busiest_load, expected_experts, groups_reached

DRAWS = 200
CASES = [(8, 2, 64, 4), (64, 6, 100, 8), (128, 8, 16, 8), (256, 8, 128, 32)]


def drawn(experts: int, top_k: int, tokens: int, draws: int = DRAWS) -> np.ndarray:
    """[draws, tokens, top_k] choices without repetition."""
    generator = np.random.default_rng(0)
    return generator.random((draws, tokens, experts)).argpartition(top_k, axis=-1)[..., :top_k]


@pytest.mark.parametrize(("experts", "top_k", "tokens", "groups"), CASES)
def test_the_busiest_group_is_the_busiest_of_those_drawn(experts, top_k, tokens, groups):
    choices = drawn(experts, top_k, tokens) // (experts // groups)
    loads = [np.bincount(choice.ravel(), minlength=groups).max() for choice in choices]
    assert busiest_load(experts, top_k, tokens, groups) == pytest.approx(np.mean(loads), rel=0.04)


@pytest.mark.parametrize(("experts", "top_k", "tokens", "groups"), CASES)
def test_the_group_that_reads_most_reads_as_many_as_those_drawn(experts, top_k, tokens, groups):
    held = experts // groups
    most = [np.bincount(np.unique(choice) // held, minlength=groups).max() for choice in drawn(experts, top_k, tokens)]
    assert busiest_experts(experts, top_k, tokens, groups) == pytest.approx(np.mean(most), rel=0.04)


@pytest.mark.parametrize(("experts", "top_k", "tokens", "groups"), CASES)
def test_a_token_reaches_as_many_groups_as_those_drawn(experts, top_k, tokens, groups):
    choices = drawn(experts, top_k, 1, 4000)[:, 0] // (experts // groups)
    others = [len(set(row) - {0}) for row in choices.tolist()]  # by symmetry, the token is in group 0
    assert groups_reached(experts, top_k, groups) == pytest.approx(np.mean(others), rel=0.03)


@given(
    experts=st.sampled_from([8, 64, 256]),
    top_k=st.integers(1, 8),
    tokens=st.integers(0, 100_000),
    groups=st.sampled_from([1, 2, 4, 8]),
)
def test_loads_lie_between_an_even_share_and_everything(experts, top_k, tokens, groups):
    load, read = busiest_load(experts, top_k, tokens, groups), busiest_experts(experts, top_k, tokens, groups)
    assert top_k * tokens / groups * (1 - 1e-12) <= load <= top_k * tokens
    assert expected_experts(experts, top_k, tokens) / groups * (1 - 1e-12) <= read <= experts / groups
    if tokens:
        assert load >= 1


def test_one_group_computes_every_choice_exactly():
    assert busiest_load(8, 2, 7, 1) == 14
    assert isinstance(busiest_load(8, 2, 7, 1), int)


def test_arrays_give_what_numbers_give():
    tokens = np.array([0, 1, 5, 1000])
    for function in (busiest_load, busiest_experts):
        assert function(64, 6, tokens, 8).tolist() == pytest.approx([function(64, 6, int(t), 8) for t in tokens])
