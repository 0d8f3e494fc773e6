"""What a load costs by itself: a burst that is served in line costs a line, and nothing else."""

import numpy as np
import pytest

from nanoserve.analysis.failures.case import Case
from nanoserve.analysis.failures.load import load_itself
from tests.analysis.failures.factories import requests_of

IDLE, BURST, ALONE_S, STEP_S, TOKENS = 60, 20, 0.1, 0.03, 31


def served(wait_s: np.ndarray, start_s: np.ndarray, slower: float = 1.0):
    """Requests one by one, then others that waited so long and decoded so many times as slowly."""
    pace = np.r_[np.ones(IDLE), np.full(len(wait_s), slower)]
    ttft_s = ALONE_S + np.r_[np.zeros(IDLE), wait_s]
    count = len(ttft_s)
    return requests_of(
        time_s=np.r_[np.arange(IDLE) * 100.0, start_s],
        prompt_tokens=np.full(count, 100),
        response_tokens=np.full(count, TOKENS),
        status=np.full(count, 200),
        latency_s=ttft_s + pace * STEP_S * (TOKENS - 1),
        ttft_s=ttft_s,
    )


def test_a_burst_that_is_served_in_line_costs_a_line():
    burst_s = 1e4 + np.arange(BURST) * 1e-6
    values = load_itself(Case(served(np.arange(BURST) * ALONE_S, burst_s))).values
    assert values["line"] > 0.1
    assert values["batches"] == pytest.approx(0, abs=1e-9)


def test_slow_tokens_in_company_are_the_cost_of_batches():
    one_by_one_s = 1e4 + np.arange(BURST) * 100.0
    values = load_itself(Case(served(np.zeros(BURST), one_by_one_s, slower=2.0))).values
    assert values["line"] == 0
    decode_s = STEP_S * (TOKENS - 1)
    share = decode_s / (ALONE_S + 2 * decode_s)
    assert values["batches"] == pytest.approx(share * BURST / (IDLE + BURST))


def test_without_first_tokens_it_says_what_is_missing():
    assert load_itself(Case(requests_of(time_s=[0.0], prompt_tokens=[1], response_tokens=[1]))).missing
