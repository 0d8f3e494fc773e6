"""A request joins one step late, and none is lost on the way."""

from hypothesis import given
from hypothesis import strategies as st

from nanoserve.analysis.published.clients import OneStepLate
from nanoserve.trace.load import ClosedLoop, OpenLoop
from tests.analysis.published import factories as make


def open_load(arrivals):
    return OneStepLate(OpenLoop(make.trace([1] * len(arrivals), [1] * len(arrivals), arrivals), round))


def test_what_one_call_finds_the_next_hands_over():
    load = open_load([0, 5, 9])
    assert load.take(0) == []
    assert load.take(6) == [(0, 0)]
    assert load.take(7) == [(1, 5)]
    assert load.take(20) == []
    assert load.take(30) == [(2, 9)]


def test_an_idle_engine_waits_for_nothing():
    load = open_load([5])
    assert load.next_ticks() == 5
    assert load.take(5) == []
    assert load.next_ticks() == 5, "look again at once"
    assert load.take(5) == [(0, 5)]
    assert load.next_ticks() is None


def test_a_user_of_a_closed_loop_sends_when_told_that_it_is_free():
    load = OneStepLate(ClosedLoop(make.trace([1, 1], [1, 1]), round, clients=1))
    assert (load.take(0), load.take(0)) == ([], [(0, 0)])
    load.finished(0, 3)
    assert (load.take(3), load.take(4)) == ([], [(1, 3)])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.lists(st.integers(1, 20), min_size=60, max_size=60))
def test_every_request_is_handed_over_once_in_order_and_a_call_after_it_was_due(arrivals, steps):
    load, now, calls, handed = open_load(sorted(arrivals)), 0, [], []
    for step in steps:
        for request, arrival in load.take(now):
            handed.append(request)
            assert sum(arrival <= call for call in calls) == 1, "found by exactly one call before this one"
        calls.append(now)
        now += step
    assert handed == list(range(len(arrivals)))
