"""Slots: a ceiling under which most of those wait that are blocked is found, and a crowd without one is not."""

import heapq

import numpy as np
import pytest

from nanoserve.analysis.failures.case import Case
from nanoserve.analysis.failures.causes import diagnose
from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.failures.slots import ceiling
from tests.analysis.failures.factories import requests_of

ALONE_S, STEP_S = 0.1, 0.03


def served(slots: int, seed: int = 0, count: int = 1500):
    """Quiet requests, then crowds of which so many run at once and the others wait for one to end."""
    rng = np.random.default_rng(seed)
    quiet_s, crowd_s = np.arange(100) * 100.0, 1e4 + np.sort(rng.uniform(0, 1, count)) * count * 0.5
    start_s, tokens = np.r_[quiet_s, crowd_s], rng.integers(50, 150, 100 + count)
    ttft_s, ends = np.empty(len(start_s)), []
    for row, (now_s, length) in enumerate(zip(start_s, tokens, strict=True)):
        free_s = heapq.heappop(ends) if len(ends) >= slots else 0.0
        ttft_s[row] = max(free_s - now_s, 0.0) + ALONE_S
        heapq.heappush(ends, now_s + ttft_s[row] + STEP_S * (length - 1))
    return requests_of(
        time_s=start_s,
        prompt_tokens=np.full(len(start_s), 100),
        response_tokens=tokens,
        status=np.full(len(start_s), 200),
        latency_s=ttft_s + STEP_S * (tokens - 1),
        ttft_s=ttft_s,
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_ceiling_is_found_and_counted(seed):
    found = ceiling(Loss(served(4, seed)))
    assert found is not None
    assert found.slots == 4
    assert found.binds


def test_few_slots_are_named_first_where_requests_wait_for_them():
    assert diagnose(Case(served(4))).named[0].name == "few_slots"


def test_with_slots_enough_nobody_is_blocked():
    assert ceiling(Loss(served(400))) is None


def test_a_crowd_that_is_blocked_now_and_then_has_no_ceiling():
    """Waits that have nothing to do with how many run."""
    logs = served(400)
    rows = np.arange(logs.requests.height)
    late_s = np.where((rows >= 100) & (rows % 7 == 3), 5.0, 0.0)
    columns = {name: logs.requests[name].to_numpy() for name in logs.requests.columns}
    columns |= {"ttft_s": columns["ttft_s"] + late_s, "latency_s": columns["latency_s"] + late_s}
    found = ceiling(Loss(requests_of(**columns)))
    assert found is not None
    assert not found.binds
