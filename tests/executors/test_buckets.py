"""Ladders cover every size and pad no more than the best ladder found by trying all."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.executors.arrays import Ladders
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


def test_every_mixed_step_has_a_program_and_no_rung_that_saves_nothing():
    ladders = Ladders(
        decode_rows=(1, 4, 16, 64), prefill_tokens=(128, 512), prefill_rows=64, table_pages=8, loop_steps=8
    )
    assert ladders.mixed_rows == (16, 64)
    assert [ladders.shape(rows, 0) for rows in (1, 2, 64)] == [(1, 0), (4, 0), (64, 0)]
    assert [ladders.shape(rows, 100) for rows in (0, 1, 17)] == [(0, 128), (16, 128), (64, 128)]
    assert ladders.programs == 4 * 2 + 2 * (1 + 2)
    few = dataclasses.replace(ladders, decode_rows=(1, 4))
    assert few.mixed_rows == (4,)
