"""The log: what goes in comes out, exactly, at any moment, and it keeps nothing of the engine's."""

import gc
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.engine.log import COUNT_FIELDS, RunLog
from nanoserve.engine.records import REQUEST_COLUMNS, STEP_COLUMNS
from nanoserve.engine.types import TICKS_PER_S, FinishReason, Kind, Plan, Request, StepResult, to_seconds
from nanoserve.roofline.counts import StepCounts
from tests.engine.factories import Job, make_engine

ticks = st.integers(0, 2**90)  # 34 years
EMPTY = (0, 0, 0, 0, 0, 0)


def plan(kind: Kind = Kind.DECODE, counts: StepCounts | None = None) -> Plan:
    return Plan(0, kind, 1, counts or StepCounts(), tuple)


def request(index: int, arrival_ticks: int = 0) -> Request:
    return Request(index=index, arrival_ticks=arrival_ticks, prompt_tokens=7, output_tokens=5, client=3)


@given(start=ticks, duration=st.integers(0, 2**70), first=st.integers(0, 2**70), host=st.integers(0, 2**70))
def test_seconds_are_the_nearest_to_the_ticks(start, duration, first, host):
    log = RunLog(0)
    log.planned(plan(), StepResult(duration, first, host_ticks=host), start, EMPTY)
    columns = log.step_columns(1)
    found = [columns[name][0] for name in ("start_s", "duration_s", "first_step_s", "host_gap_s")]
    assert found == [to_seconds(value) for value in (start, duration, first, host)]
    assert found == [value / TICKS_PER_S for value in (start, duration, first, host)]


@given(st.lists(st.integers(0, 2**62), min_size=len(COUNT_FIELDS), max_size=len(COUNT_FIELDS)), st.sampled_from(Kind))
def test_counts_and_kind_come_back(values, kind):
    counts = StepCounts(*values)
    counts.drafted_tokens += 1  # the other two are counted where something is drafted
    log = RunLog(0)
    log.planned(plan(kind, counts), StepResult(1, 1, executed_tokens=5, executed_kv_tokens=6), 0, (1, 6, 2, 3, 4, 5))
    columns = log.step_columns(9)
    assert {name: columns[name][0] for name in COUNT_FIELDS} == {name: getattr(counts, name) for name in COUNT_FIELDS}
    assert columns["kind"].tolist() == [kind]
    expected = {"running": 1, "waiting": 2, "pages_used": 3, "largest_free_run": 4, "stalled_seqs": 6, "pages_total": 9}
    assert {name: columns[name][0] for name in expected} == expected
    assert (columns["executed_tokens"][0], columns["executed_kv_tokens"][0]) == (5, 6)


def test_without_padding_the_useful_tokens_are_the_executed_ones():
    log = RunLog(0)
    counts = StepCounts(3, 2, 60, 60, prefill_tokens=0, sampled=6)
    log.planned(plan(counts=counts), StepResult(1, 1), 0, (2, 0, 0, 4, 5, 50))
    columns = log.step_columns(9)
    assert (columns["executed_tokens"][0], columns["executed_kv_tokens"][0]) == (6, 60)
    assert columns["kv_tokens_held"][0] == 50 + 6


@given(ticks)
def test_an_event_has_its_nanosecond(now):
    log = RunLog(1)
    log.sent(request(0), now)
    (line,) = log.event_lines()
    whole, fraction = line.split('"t_s":')[1].split(",")[0].split(".")
    assert int(whole + fraction) == now * 10**9 // TICKS_PER_S and len(fraction) == 9


def test_what_has_not_happened_is_none_and_what_was_not_sent_is_absent():
    log = RunLog(4)
    log.sent(request(2, arrival_ticks=TICKS_PER_S), 2 * TICKS_PER_S)
    log.sent(request(1), 0)
    log.finished(1, TICKS_PER_S, FinishReason.REFUSED, 0, "too long")
    columns = log.request_columns()
    assert columns["request"] == [1, 2]
    assert columns["arrival_s"] == [0.0, 1.0] and columns["sent_s"] == [0.0, 2.0]
    assert columns["admitted_s"] == columns["first_token_s"] == [None, None]
    assert columns["finish_s"] == [1.0, None]
    assert columns["finish_reason"] == ["refused", ""]
    assert columns["detail"] == ["too long", "still running when the run was cut short"]
    assert log.finished_count == 1
    assert [json.loads(line).get("detail") for line in log.event_lines()] == [None, None, "too long"]


def test_columns_are_those_of_the_records_in_their_order():
    log = RunLog(1)
    log.sent(request(0), 0)
    assert list(log.step_columns(1)) == list(STEP_COLUMNS)
    assert ["session", *log.request_columns()] == ["session", *(name for name in REQUEST_COLUMNS if name != "session")]


def test_an_empty_log_has_empty_columns():
    log = RunLog(0)
    assert all(len(column) == 0 for column in log.step_columns(1).values())
    assert all(column == [] for column in log.request_columns().values())
    assert list(log.event_lines()) == [] and log.plan_count() == 0


def test_reading_it_in_the_middle_changes_nothing():
    jobs = [Job(0, 9, 30), Job(1, 4, 20), Job(10**7, 30, 9)]
    read, unread = make_engine(jobs), make_engine(jobs)
    columns = []
    read.run(observe=lambda done, now: columns.append((read.log.step_columns(64), read.log.request_columns())))
    unread.run()
    assert list(read.log.event_lines()) == list(unread.log.event_lines())
    assert read.log.request_columns() == unread.log.request_columns() == columns[-1][1]
    last = unread.log.step_columns(64)
    for number, (steps, _) in enumerate(columns, start=1):
        for name, column in steps.items():
            assert np.array_equal(column, last[name][:number]), name


@pytest.mark.parametrize("kind", [Plan, StepResult, StepCounts, Request])
def test_nothing_that_the_engine_made_is_kept(kind):
    engine = make_engine([Job(index, 9, 30) for index in range(20)])
    engine.run()
    seen: set[int] = set()
    reachable: list[object] = [engine.log]
    while reachable:
        thing = reachable.pop()
        assert not isinstance(thing, kind)
        if id(thing) not in seen and not isinstance(thing, type):
            seen.add(id(thing))
            reachable += gc.get_referents(thing)
    assert engine.log.plan_count() > 10 and len(seen) > 10
