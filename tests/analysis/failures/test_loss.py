"""The unit in which causes are compared: what a request lost of the time that it took."""

import numpy as np
import pytest

from nanoserve.analysis.failures.loss import Loss
from tests.analysis.failures.factories import requests_of

IDLE = 40
ALONE_S, STEP_S, TOKENS = 0.1, 0.03, 31


def loss_with(*late_s, slower=1.0, status=200):
    """Requests that find the engine idle, and then some that wait so long and decode so many times as slowly."""
    count = IDLE + len(late_s)
    decode_s = np.r_[np.full(IDLE, 1.0), np.full(len(late_s), slower)] * STEP_S * (TOKENS - 1)
    ttft_s = ALONE_S + np.r_[np.zeros(IDLE), late_s]
    return Loss(
        requests_of(
            time_s=np.arange(count) * 100.0,
            prompt_tokens=np.full(count, 100),
            response_tokens=np.full(count, TOKENS),
            status=np.r_[np.full(IDLE, 200), np.full(len(late_s), status)],
            latency_s=ttft_s + decode_s,
            ttft_s=ttft_s,
        )
    )


def test_alone_at_the_usual_pace_nothing_is_lost():
    assert loss_with().lost.tolist() == [0.0] * IDLE


def test_what_takes_twice_its_time_has_lost_a_half():
    whole_s = ALONE_S + STEP_S * (TOKENS - 1)
    assert loss_with(whole_s).lost[-1] == pytest.approx(0.5)


def test_slow_tokens_are_lost_time_as_well():
    decode_s = STEP_S * (TOKENS - 1)
    assert loss_with(0.0, slower=2.0).lost[-1] == pytest.approx(decode_s / (ALONE_S + 2 * decode_s))


def test_who_fails_loses_everything():
    assert loss_with(0.0, status=503).lost[-1] == 1.0


def test_sparing_the_whole_wait_spares_the_whole_loss():
    loss = loss_with(0.7)
    assert loss.spared(loss.waited_s) == pytest.approx(loss.lost)
    assert loss.spared(loss.waited_s * 9) == pytest.approx(loss.lost)


def test_sparing_nothing_spares_nothing():
    loss = loss_with(0.7, 0.2)
    assert not loss.spared(np.zeros(IDLE + 2)).any()


def test_a_wait_that_the_line_accounts_for_is_not_being_blocked():
    """Twenty come at once and are served one after another: each waits for those before it, and nobody is blocked."""
    line = np.arange(20) * ALONE_S
    start_s = np.r_[np.arange(IDLE) * 100.0, np.full(20, 5000.0) + np.arange(20) * 1e-6]
    ttft_s = ALONE_S + np.r_[np.zeros(IDLE), line]
    count = len(start_s)
    loss = Loss(
        requests_of(
            time_s=start_s,
            prompt_tokens=np.full(count, 100),
            response_tokens=np.full(count, TOKENS),
            status=np.full(count, 200),
            latency_s=ttft_s + STEP_S * (TOKENS - 1),
            ttft_s=ttft_s,
        )
    )
    assert loss.waited_s[-1] == pytest.approx(line[-1])
    assert not loss.blocked_s.any()
