"""Failures by kind: every request is of one kind, and the error log's words are understood."""

import numpy as np
import polars as pl
import pytest

from nanoserve.analysis.failures.kinds import Kind, failure_kinds, kinds_of_errors, kinds_of_requests
from nanoserve.analysis.failures.loss import Loss
from tests.analysis.failures.factories import requests_of

STATUSES = [200, 503, 504, 429, 500, 200, 418]
KINDS = ["served", "out_of_memory", "timeout", "refused", "other", "served", "other"]


def few(**columns):
    count = len(STATUSES)
    given = {"prompt_tokens": [10] * count, "response_tokens": [5] * count, "latency_s": [1.0] * count, **columns}
    return requests_of(time_s=np.arange(count) * 3600.0, status=STATUSES, **given)


def test_a_status_has_one_kind():
    assert [Kind(kind).key for kind in kinds_of_requests(few())] == KINDS


@pytest.mark.parametrize(
    ("error_type", "text", "kind"),
    [
        ("OutOfMemory", "", "out_of_memory"),
        ("RuntimeError", "CUDA out of memory. Tried to allocate 2 GiB", "out_of_memory"),
        ("TimeoutError", "older than 30 s", "timeout"),
        ("Error", "context deadline exceeded", "timeout"),
        ("HTTPError", "Too Many Requests", "refused"),
        ("ValueError", "logits are NaN", "wrong_output"),
        ("KeyError", "'session'", "other"),
    ],
)
def test_errors_are_known_by_their_type_or_their_text(error_type, text, kind):
    errors = pl.DataFrame({"time_s": [0.0], "error_type": [error_type], "traceback": [text]})
    assert [Kind(each).key for each in kinds_of_errors(errors)] == [kind]


def test_the_type_speaks_before_the_text():
    errors = pl.DataFrame({"error_type": ["Timeout"], "traceback": ["timed out after an out of memory error"]})
    assert kinds_of_errors(errors).tolist() == [Kind.TIMEOUT]


def test_counts_add_up_to_the_failures():
    finding = failure_kinds(Loss(few()))
    kinds = ("out_of_memory", "timeout", "refused", "other", "wrong_output")
    assert sum(finding.values[kind] for kind in kinds) == finding.values["failed"] == 5
    per_hour = sum(finding.series[kind] for kind in kinds)
    assert per_hour[:7].tolist() == [0, 1000, 1000, 1000, 1000, 0, 1000]


def test_an_empty_answer_is_wrong():
    finding = failure_kinds(Loss(few(response_tokens=[0, 5, 5, 5, 5, 5, 5])))
    assert finding.values["wrong_output"] == 1


def test_without_any_status_it_says_what_is_missing():
    service = requests_of(time_s=[0.0], prompt_tokens=[1], response_tokens=[1])
    assert failure_kinds(Loss(service)).missing
