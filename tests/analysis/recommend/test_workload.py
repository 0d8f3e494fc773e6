"""Logs become a trace: nothing is lost but prompts of nothing, and what a log cannot tell is drawn and said."""

import numpy as np
import polars as pl
import pytest

from nanoserve.analysis.recommend.workload import Prefixes, workload
from nanoserve.specs.errors import TraceError
from nanoserve.trace.types import Ragged


def requests(**columns) -> pl.DataFrame:
    base = {"time_s": [0.0, 1.0, 2.0, 3.0], "prompt_tokens": [10, 20, 30, 40], "response_tokens": [1, 2, 3, 4]}
    return pl.DataFrame(base | columns)


def test_times_and_lengths_are_those_of_the_log():
    trace = workload(requests(), name="x").trace
    assert trace.arrival_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert trace.prompt_tokens.tolist() == [10, 20, 30, 40] and trace.output_tokens.tolist() == [1, 2, 3, 4]
    assert trace.session is None and trace.answer_tokens is None


def test_answers_of_failed_requests_are_drawn_from_answered_ones_and_counted():
    failed = requests(status=[200, 503, 200, 504], response_tokens=[5, 0, 7, 6])
    work = workload(failed, name="x")
    assert work.drawn == 2 and "2 of 4" in work.notes[0]
    assert work.trace.output_tokens[[0, 2]].tolist() == [5, 7]
    assert work.trace.output_tokens[1] in (5, 7) and work.trace.output_tokens[3] >= 6  # it had received six


def test_draws_keep_to_prompts_of_about_the_same_length():
    rng = np.random.default_rng(0)
    prompt = np.concatenate([np.full(500, 10), np.full(500, 4000)])
    response = np.where(prompt == 10, 3, 900)
    status = np.where(rng.random(1000) < 0.3, 503, 200)
    frame = pl.DataFrame(
        {
            "time_s": np.arange(1000.0),
            "prompt_tokens": prompt,
            "response_tokens": np.where(status == 200, response, 0),
            "status": status,
        }
    )
    assert (workload(frame, name="x").trace.output_tokens == response).all()


def test_the_same_seed_draws_the_same():
    frame = requests(status=[200, 503, 200, 503])
    one, other = (workload(frame, name="x", seed=3).trace.output_tokens for _ in range(2))
    assert (one == other).all()


def test_sessions_are_numbered_and_strangers_are_alone():
    work = workload(requests(session_id=["b", None, "b", None]), name="x")
    assert work.trace.session.tolist() == [0, 1, 0, 2] and work.trace.turn.tolist() == [0, 0, 1, 0]


def test_the_limit_that_was_stated_is_what_blocks_had_room_for():
    work = workload(requests(allocated_blocks=[3, 3, None, 4]), name="x", block_tokens=16)
    assert work.trace.output_tokens.tolist() == [38, 28, 28, 24]
    assert work.trace.answer_tokens.tolist() == [1, 2, 3, 4]
    assert any("had room for" in note for note in work.notes)


def test_blocks_that_hold_no_more_than_was_written_state_no_limit():
    work = workload(requests(allocated_blocks=[1, 2, 2, 2], response_tokens=[6, 12, 2, 4]), name="x", block_tokens=16)
    assert work.trace.answer_tokens is None


def test_prompts_of_nothing_are_set_aside_and_counted_with_their_prefixes():
    prefixes = Prefixes(Ragged(np.array([7, 8, 9]), np.array([0, 0, 1, 1, 3])), 8)
    work = workload(requests(prompt_tokens=[10, 0, 30, 40]), name="x", prefixes=prefixes)
    assert len(work.trace) == 3 and "1 requests without a prompt" in work.notes[0]
    assert [work.trace.prefix_hashes.row(row).tolist() for row in range(3)] == [[], [], [8, 9]]


def test_a_log_without_any_answer_is_refused():
    with pytest.raises(TraceError, match="none of 4 requests was answered"):
        workload(requests(status=[500] * 4), name="x")
