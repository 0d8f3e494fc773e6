"""Parts of traces keep every column in step."""

import numpy as np
import pytest

from nanoserve.specs.errors import ConfigError, TraceError
from nanoserve.trace.slices import head, scaled, window, with_stated_limit
from tests.trace.factories import full_trace, same, small_trace


def test_head_cuts_every_column():
    part = head(full_trace(), 2).validated()
    assert len(part) == 2
    assert part.prefix_hashes is not None and part.prefix_hashes.row(1).tolist() == []
    assert part.texts == ("one", "zwei, 'drei'")


def test_head_of_more_than_there_is_is_the_trace():
    assert head(full_trace(), 3) is not None and same(head(full_trace(), 3), full_trace())


def test_window_is_half_open_and_starts_at_0():
    trace = small_trace([0.0, 1.0, 2.0, 3.0], prompt_tokens=np.array([1, 2, 3, 4]))
    part = window(trace, 1.0, 3.0)
    assert part.arrival_s.tolist() == [0.0, 1.0]
    assert part.prompt_tokens.tolist() == [2, 3]


def test_window_keeps_the_lists_of_its_requests():
    part = window(full_trace(), 0.3, 1.0).validated()
    assert part.prefix_hashes is not None and part.prefix_hashes.row(0).tolist() == [7, 8, 9]
    assert part.output_ids is not None and part.output_ids.values.tolist() == [2**40] * 5


def test_windows_side_by_side_hold_every_request_once():
    trace = small_trace(sorted(np.random.default_rng(0).uniform(0, 10, 200).tolist()))
    parts = [window(trace, start, start + 2.5) for start in (0, 2.5, 5.0, 7.5)]
    assert sum(map(len, parts)) == len(trace)
    rejoined = np.concatenate([part.arrival_s + 2.5 * index for index, part in enumerate(parts)])
    np.testing.assert_allclose(rejoined, trace.arrival_s, atol=1e-12)


def test_window_numbers_sessions_anew_and_keeps_turns():
    trace = small_trace([0.0, 1.0, 2.0], session=np.array([0, 1, 0]), turn=np.array([0, 0, 1]))
    part = window(trace, 1.0, 9.0)
    assert part.session is not None and part.turn is not None
    assert (part.session.tolist(), part.turn.tolist()) == ([0, 1], [0, 1])


def test_a_window_without_requests_says_what_the_trace_covers():
    with pytest.raises(TraceError, match=r"nothing arrives from 5 s to 6 s; it covers 0.000 s to 1.000 s"):
        window(small_trace([0.0, 1.0]), 5, 6)


def test_scaled_changes_times_only():
    trace = full_trace()
    faster = scaled(trace, 0.5)
    assert faster.arrival_s.tolist() == (trace.arrival_s * 0.5).tolist()
    assert faster.prompt_ids is trace.prompt_ids
    assert scaled(trace, 1.0) is trace


@pytest.mark.parametrize(
    "make", [lambda t: head(t, 0), lambda t: window(t, 2, 2), lambda t: window(t, -1, 2), lambda t: scaled(t, 0)]
)
def test_parts_that_cannot_be_are_refused(make):
    with pytest.raises(ConfigError, match=r"wanted|must be"):
        make(small_trace([0.0]))


def test_a_stated_limit_leaves_answers_where_they_ended():
    before = full_trace()
    stated = with_stated_limit(before, int(before.output_tokens.min()) + 1)
    assert stated.answer_tokens is not None and (stated.answer_tokens == before.output_tokens).all()
    assert (stated.output_tokens == np.maximum(before.output_tokens, before.output_tokens.min() + 1)).all()
    assert (stated.output_tokens != before.output_tokens).any()
    part = head(stated, 2).validated()
    assert part.answer_tokens is not None and len(part.answer_tokens) == 2
