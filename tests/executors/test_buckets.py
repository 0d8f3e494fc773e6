"""Ladders cover every size and pad no more than the best ladder found by trying all."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.executors.buckets import GRAIN, best_ladder, bucket, geometric_ladder


def padded(ladder, sizes):
    return sum(bucket(ladder, s) for s in sizes)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(1, 4))
def test_no_ladder_of_as_many_rungs_pads_less(sizes, rungs):
    ladder = best_ladder(sizes, 100, rungs)
    assert ladder[-1] == 100 and len(ladder) <= rungs and list(ladder) == sorted(set(ladder))
    candidates = [*range(GRAIN, 100, GRAIN)]
    best = min(
        padded((*lower, 100), [*sizes, 100])
        for count in range(rungs)
        for lower in itertools.combinations(candidates, count)
    )
    assert padded(ladder, [*sizes, 100]) == best


def test_many_distinct_sizes_are_thinned_and_still_covered():
    ladder = best_ladder(range(1, 5000), 4999, 6)
    assert len(ladder) == 6 and ladder[-1] == 4999


def test_geometric_ladder_ends_at_the_top():
    assert geometric_ladder(100) == (1, 4, 16, 64, 100)
    assert geometric_ladder(1) == (1,)


def test_a_size_above_the_ladder_is_a_bug():
    with pytest.raises(ValueError, match="above the ladder"):
        bucket((4, 8), 9)
