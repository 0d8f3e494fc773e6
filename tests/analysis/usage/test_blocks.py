"""The study of block sizes: the closed form against counting, and what must hold of any trace."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.analysis.usage.blocks import SIZES, block_sizes, chips_of, wasted_up_to
from nanoserve.experiment import Experiment
from tests.analysis.failures.factories import requests_of


def service(prompts, answers, status=None):
    count = len(prompts)
    return requests_of(
        time_s=np.arange(count) * 1.0,
        prompt_tokens=prompts,
        response_tokens=answers,
        status=status or [200] * count,
    )


@given(st.integers(0, 500), st.sampled_from(SIZES))
def test_the_closed_form_is_the_sum(length, size):
    counted = sum(-(-each // size) * size - each for each in range(1, length + 1))
    assert wasted_up_to(np.array([length]), size)[0] == counted


requests = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=1, max_size=8)


@given(requests)
def test_waste_is_that_of_every_step_of_every_request(rows):
    prompts, answers = zip(*rows, strict=True)
    finding = block_sizes(service(list(prompts), list(answers)))
    lengths = [length for prompt, answer in rows for length in range(prompt, prompt + answer)]
    for place, size in enumerate(SIZES):
        held = sum(-(-length // size) * size for length in lengths)
        assert finding.series["waste_share"][place] == pytest.approx(1 - sum(lengths) / held)
        blocks = sum(-(-(prompt + answer - 1) // size) for prompt, answer in rows) / len(rows)
        assert finding.series["blocks_per_request"][place] == pytest.approx(blocks)


@given(requests)
def test_longer_blocks_waste_no_less(rows):
    prompts, answers = zip(*rows, strict=True)
    shares = block_sizes(service(list(prompts), list(answers))).series["waste_share"]
    assert (np.diff(shares) >= -1e-12).all()


def test_failed_requests_are_left_out():
    finding = block_sizes(service([100, 9000], [10, 10], status=[200, 503]))
    assert finding.rows == 1
    assert finding.values["mean_positions"] == pytest.approx(104.5)


def test_without_served_requests_there_is_no_study():
    assert block_sizes(service([100], [10], status=[503])).missing


def test_a_step_takes_longer_by_what_whole_blocks_add():
    chips = chips_of(Experiment(model="llama-3.1-8b"))
    step_s = block_sizes(service([1000] * 3, [50] * 3), chips.step_s).series["step_s"]
    assert (np.diff(step_s) > 0).all()
    assert step_s[-1] / step_s[0] < 1.1
