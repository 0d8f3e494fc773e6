"""What is in the engines at a moment: the sorted sums against counting one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.analysis.failures.occupancy import sums_at, sums_by_replica

times = st.integers(0, 12).map(float)
stays = st.lists(st.tuples(times, times, st.integers(0, 5), st.integers(0, 2)), max_size=20)


def there(rows, moment):
    return [row for row in rows if row[0] < row[1] and row[0] < moment < row[1]]


@given(stays, st.lists(times, max_size=10))
def test_sums_are_those_counted_one_by_one(rows, moments):
    start, end, weight = (np.array([row[i] for row in rows], float) for i in range(3))
    moments = np.array(moments, float)
    counted = [len(there(rows, moment)) for moment in moments]
    weighed = [sum(row[2] for row in there(rows, moment)) for moment in moments]
    assert sums_at(moments, start, end).tolist() == counted
    assert sums_at(moments, start, end, weight).tolist() == weighed


@given(stays)
def test_replicas_count_only_their_own(rows):
    start, end, _, replica = (np.array([row[i] for row in rows], float) for i in range(4))
    found = sums_by_replica(start, start, end, replica.astype(int))
    wanted = [len(there([other for other in rows if other[3] == row[3]], row[0])) for row in rows]
    assert found.tolist() == wanted


def test_what_never_ends_in_the_log_is_nowhere():
    assert sums_at(np.array([5.0]), np.array([1.0, 1.0]), np.array([np.nan, 9.0])).tolist() == [1.0]
