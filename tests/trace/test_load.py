"""Open and closed loops, against a plain account of who may send when."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.specs.errors import ConfigError
from nanoserve.trace.load import ClosedLoop, OpenLoop
from tests.trace.factories import small_trace

TICKS_PER_S = 1000


def to_ticks(seconds: float) -> int:
    return round(seconds * TICKS_PER_S)


arrival_lists = st.lists(st.integers(0, 50), max_size=20).map(lambda times: sorted(t / 10 for t in times))


@settings(max_examples=60)
@given(arrivals=arrival_lists, gaps=st.lists(st.integers(0, 2000), min_size=1, max_size=20))
def test_open_loop_hands_out_every_row_once_in_order_and_never_early(arrivals, gaps):
    load = OpenLoop(small_trace(arrivals), to_ticks)
    taken, now = [], 0
    for gap in gaps:
        due_next = load.next_ticks()
        due = load.take(now)
        assert bool(due) == (due_next is not None and due_next <= now)
        assert all(ticks <= now for _, ticks in due)
        assert load.next_ticks() is None or load.next_ticks() > now
        taken += due
        now += gap
    taken += load.take(10**9)
    assert taken == [(row, to_ticks(seconds)) for row, seconds in enumerate(arrivals)]
    assert load.exhausted and load.remaining == 0 and load.next_ticks() is None and load.take(10**9) == []


def test_open_loop_counts_what_remains():
    load = OpenLoop(small_trace([0.0, 0.0, 1.0]), to_ticks)
    assert (load.remaining, load.exhausted) == (3, False)
    load.take(0)
    assert (load.remaining, load.exhausted) == (1, False)


def test_open_loop_does_not_wait_for_answers():
    load = OpenLoop(small_trace([0.0, 1.0]), to_ticks)
    load.take(0)
    before = load.next_ticks()
    load.finished(0, 10**9)
    assert load.next_ticks() == before == 1000


def test_half_the_time_scale_sends_twice_as_fast():
    load = OpenLoop(small_trace([0.0, 1.0, 4.0]), to_ticks, time_scale=0.5)
    assert load.take(10**9) == [(0, 0), (1, 500), (2, 2000)]


def test_open_loop_keeps_ticks_beyond_64_bits():
    load = OpenLoop(small_trace([3501.5]), lambda seconds: int(seconds * 2) << 59)
    assert load.next_ticks() == 7003 << 59


@settings(max_examples=60)
@given(
    count=st.integers(0, 25),
    clients=st.integers(1, 6),
    think=st.sampled_from([0.0, 0.5]),
    serve_ticks=st.lists(st.integers(1, 900), min_size=25, max_size=25),
)
def test_closed_loop_follows_a_plain_simulation_of_clients(count, clients, think, serve_ticks):
    """Every client alone: it takes the next row when its last answer and think time are over."""
    free = [0] * clients
    expected = []
    for row in range(count):
        client = min(range(clients), key=lambda c: free[c])
        expected.append((row, free[client]))
        free[client] += serve_ticks[row] + to_ticks(think)

    load = ClosedLoop(small_trace([0.0] * count), to_ticks, clients=clients, think_time_s=think)
    under_way: list[tuple[int, int]] = []  # (end, row)
    taken, now = [], 0
    while not load.exhausted or under_way:
        for row, sent in load.take(now):
            taken.append((row, sent))
            under_way.append((sent + serve_ticks[row], row))
        assert len(under_way) <= clients
        events = [end for end, _ in under_way] + [t for t in [load.next_ticks()] if t is not None]
        now = min(events, default=now)
        for end, row in [entry for entry in under_way if entry[0] <= now]:
            under_way.remove((end, row))
            load.finished(row, end)
    assert taken == expected


def test_closed_loop_says_that_nothing_comes_until_an_answer_does():
    load = ClosedLoop(small_trace([0.0, 5.0, 9.0]), to_ticks, clients=1, think_time_s=2.0)
    assert load.take(0) == [(0, 0)]
    assert load.next_ticks() is None and not load.exhausted
    load.finished(0, 300)
    assert load.next_ticks() == 2300
    assert load.take(2299) == [] and load.take(2300) == [(1, 2300)]


def test_closed_loop_has_nothing_to_say_after_the_last_row():
    load = ClosedLoop(small_trace([0.0]), to_ticks, clients=4)
    load.take(0)
    load.finished(0, 10)
    assert load.exhausted and load.next_ticks() is None and load.take(10**9) == []


def test_a_request_refused_while_being_taken_frees_its_client_at_once():
    load = ClosedLoop(small_trace([0.0] * 3), to_ticks, clients=1)
    sent = []
    while (due := load.next_ticks()) is not None:
        for row, ticks in load.take(due):
            sent.append((row, ticks))
            load.finished(row, due)
    assert sent == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    [
        (OpenLoop, {"time_scale": 0.0}, "time_scale = 0.0"),
        (OpenLoop, {"time_scale": float("nan")}, "time_scale = nan"),
        (ClosedLoop, {"clients": 0}, "clients = 0"),
        (ClosedLoop, {"clients": 1, "think_time_s": -1.0}, "think_time_s = -1.0"),
    ],
)
def test_a_load_that_cannot_be_names_its_number(kind, arguments, named):
    with pytest.raises(ConfigError, match=named):
        kind(small_trace([0.0]), to_ticks, **arguments)
