"""Replicas by hour: as many as the rate of that hour needs, and said where it cannot be told."""

import datetime

import numpy as np
import pytest

from nanoserve.analysis.recommend.capacity_by_hour import replicas_by_hour

MONDAY = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)
HOUR_S = 3600.0


def week(night_rps: float, noon_rps: float) -> np.ndarray:
    """Evenly spaced requests: a rate at noon (12 to 13 h), another at all other hours."""
    hours = np.arange(7 * 24)
    counts = np.where(hours % 24 == 12, noon_rps, night_rps) * HOUR_S
    return np.concatenate(
        [hour * HOUR_S + np.arange(int(n)) * HOUR_S / n for hour, n in zip(hours, counts, strict=True)]
    )


def test_each_hour_needs_as_many_as_its_rate_over_what_one_serves():
    found = replicas_by_hour(week(0.02, 0.09), MONDAY, 0.025, 4)
    needed = {row["hour"]: row["needed"] for row in found.values["hours"]}
    assert len(needed) == 48 and needed["weekday 12"] == needed["weekend 12"] == 4 and needed["weekday 03"] == 1
    assert found.title == "The busiest hour needs all 4 replicas, the quietest 1"


@pytest.mark.parametrize(
    ("there", "says"), [(2, "needs 4 replicas and there are 2"), (9, "4 of the 9 replicas are enough")]
)
def test_too_few_and_too_many_are_said(there, says):
    assert says in replicas_by_hour(week(0.02, 0.09), MONDAY, 0.025, there).title


def test_a_log_that_starts_at_noon_is_counted_by_the_clock():
    arrival_s = week(0.02, 0.09)
    later = arrival_s[arrival_s >= 12 * HOUR_S] - 12 * HOUR_S
    found = replicas_by_hour(later, MONDAY + datetime.timedelta(hours=12), 0.025, 4)
    needed = {row["hour"]: row["needed"] for row in found.values["hours"]}
    assert needed["weekday 12"] == 4 and needed["weekday 00"] == 1


@pytest.mark.parametrize(
    ("arrival_s", "dated", "why"), [(np.arange(5.0), True, "covers 0.0 h"), (week(0.02, 0.09), False, "no dates")]
)
def test_what_cannot_be_told_is_said(arrival_s, dated, why):
    assert why in (replicas_by_hour(arrival_s, MONDAY, 1.0, 1, dated=dated).missing or "")
