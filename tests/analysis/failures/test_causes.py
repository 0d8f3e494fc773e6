"""Causes: what is planted is named first, what is not is not named, and what cannot be weighed is said to be."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from nanoserve.analysis import usage
from nanoserve.analysis.failures import findings
from nanoserve.analysis.failures.case import Case
from nanoserve.analysis.failures.cause import Cause
from nanoserve.analysis.failures.causes import Diagnosis, diagnose
from nanoserve.analysis.failures.shortage import Pool, Reason
from nanoserve.analysis.service import Service
from tests.analysis.failures.factories import Truth, memory_error, requests_of, service, with_failures

IN_ORDER = service(Truth())


def diagnosis(logs: Service) -> Diagnosis:
    return diagnose(Case(logs))


def reserving(logs: Service, share_written: float) -> Service:
    """The same service with an allocator that reserves, and errors that found room but no run."""
    blocks = (logs.requests["allocated_blocks"] / share_written).cast(pl.Int64)
    reserved = dataclasses.replace(logs, requests=logs.requests.with_columns(allocated_blocks=blocks))
    rows = np.arange(0, logs.requests.height, 50)
    return with_failures(reserved, rows, 503, [memory_error(90, 200, 1000, 60, 800, 0)] * len(rows))


def flooded(logs: Service) -> Service:
    """The same service with errors that met a full pool."""
    rows = np.arange(0, logs.requests.height, 50)
    return with_failures(logs, rows, 503, [memory_error(90, 20, 1000, 20, 900, 80)] * len(rows))


PLANTED = {
    "contiguous_allocation": lambda seed: reserving(service(Truth(seed=seed)), 0.4),
    "slow_interval": lambda seed: service(Truth(seed=seed, interval_s=0.2)),
    "no_admission_control": lambda seed: flooded(service(Truth(seed=seed))),
    "memory_leak": lambda seed: service(Truth(seed=seed, leak_blocks=60)),
    "slow_replica": lambda seed: service(Truth(seed=seed, slow=1.5)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_cause_is_named_first(name):
    assert diagnosis(PLANTED[name](1)).named[0].name == name


@pytest.mark.parametrize("name", [name for name in PLANTED if name != "contiguous_allocation"])
def test_a_planted_cause_is_named_alone(name):
    assert len(diagnosis(PLANTED[name](2)).named) == 1


def test_a_service_in_order_names_none():
    found = diagnosis(IN_ORDER)
    assert found.named == ()
    assert found.findings()[0].title.startswith("No cause is named")


def test_an_error_that_had_room_is_told_apart_from_one_that_had_none():
    """Without reserving, out-of-memory errors say nothing against the allocator."""
    scores = {cause.name: cause.score for cause in diagnosis(flooded(IN_ORDER)).ranked}
    assert scores["contiguous_allocation"] < 1e-4
    assert scores["no_admission_control"] == pytest.approx(0.02, rel=0.2)


def test_errors_for_want_of_lost_blocks_are_the_leaks():
    """Of a thousand blocks, four hundred are neither free nor held: no admission control would bring them back."""
    rows = np.arange(0, IN_ORDER.requests.height, 50)
    lines = [memory_error(90, 20, 1000, 20, 500, 80)] * len(rows)
    scores = {cause.name: cause.explained for cause in diagnosis(with_failures(IN_ORDER, rows, 503, lines)).ranked}
    assert scores["memory_leak"] == pytest.approx(0.02, rel=0.2)
    assert scores["no_admission_control"] == pytest.approx(0, abs=1e-12)


def test_causes_are_in_the_order_of_their_scores():
    found = diagnosis(service(Truth(interval_s=0.2, slow=1.5, leak_blocks=60)))
    scores = [cause.score for cause in found.ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(found.named) == 3


@pytest.mark.parametrize("name", PLANTED)
def test_named_causes_have_evidence_and_a_config_without_them(name):
    first = diagnosis(PLANTED[name](1)).named[0]
    assert first.why_for
    assert all("." in binding for binding in first.bindings)


@pytest.mark.parametrize("name", PLANTED)
def test_every_title_can_stand_above_a_plot(name):
    case = Case(PLANTED[name](1))
    titles = [finding.title for finding in [*usage.findings(case.service), *findings(case), *diagnose(case).findings()]]
    assert max(map(len, titles)) < 95, max(titles, key=len)


def test_shuffled_rows_change_nothing():
    logs = PLANTED["slow_interval"](3)
    mixed = logs.requests.sample(fraction=1.0, shuffle=True, seed=4).sort("time_s")
    again = diagnosis(dataclasses.replace(logs, requests=mixed))
    assert [finding.values for finding in again.findings()] == [each.values for each in diagnosis(logs).findings()]


def test_what_the_logs_do_not_have_is_said_to_be_missing():
    poor = requests_of(time_s=[0.0, 1.0, 2.0], prompt_tokens=[9] * 3, response_tokens=[9] * 3, status=[200, 503, 200])
    missing = {cause.name for cause in diagnosis(poor).ranked if cause.missing is not None}
    assert missing == {"contiguous_allocation", "slow_interval", "memory_leak", "slow_replica", "few_slots"}


SMALL = {
    "nothing but arrivals": {"time_s": [0.0], "prompt_tokens": [9], "response_tokens": [9]},
    "one request": {
        "time_s": [0.0],
        "prompt_tokens": [9],
        "response_tokens": [9],
        "status": [200],
        "latency_s": [1.0],
        "ttft_s": [0.1],
        "replica": [0],
        "allocated_blocks": [2],
        "used_tokens": [17],
    },
    "one failure": {
        "time_s": [0.0],
        "prompt_tokens": [9],
        "response_tokens": [0],
        "status": [504],
        "latency_s": [30.0],
        "ttft_s": [None],
    },
}


@pytest.mark.parametrize("columns", SMALL.values(), ids=list(SMALL))
def test_a_log_of_one_request_is_read_to_the_end(columns):
    case = Case(requests_of(**columns))
    told = [*findings(case), *diagnose(case).findings()]
    assert all(finding.missing or finding.title for finding in told)
    assert not diagnose(case).named or columns.get("status") == [503]


def test_a_log_of_no_request_has_no_causes():
    empty = dataclasses.replace(IN_ORDER, requests=IN_ORDER.requests.clear())
    assert diagnosis(empty).findings()[0].missing


def test_a_score_needs_both_a_loss_and_a_proof():
    lost = Cause(name="a", says="a", explained=0.5, strength=0.4)
    proven = Cause(name="b", says="b", explained=0.001, strength=1.0)
    both = Cause(name="c", says="c", explained=0.5, strength=1.0)
    assert [cause.named for cause in (lost, proven, both)] == [False, False, True]


@pytest.mark.parametrize(
    ("reason", "held", "written", "leaked"),
    [
        (Reason.ROOM, 80, 80, 0),
        (Reason.LEAKED, 80, 80, 20),
        (Reason.RESERVED, 95, 40, 0),
        (Reason.FULL, 98, 98, 0),
    ],
)
def test_a_pool_says_why_ten_blocks_did_not_fit(reason, held, written, leaked):
    pool = Pool(
        total=np.array([100.0]),
        held=np.array([float(held)]),
        written=np.array([float(written)]),
        leaked=np.array([float(leaked)]),
        need=np.array([10.0]),
        need_written=np.array([5.0]),
    )
    assert pool.reasons().tolist() == [reason]
