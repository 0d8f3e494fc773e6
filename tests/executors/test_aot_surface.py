"""Closing in on a boundary: right within its resolution, whatever the guess, in few questions."""

import hypothesis
import hypothesis.strategies as st

from nanoserve.executors.aot_surface import RESOLUTION, largest_fitting


@hypothesis.given(limit=st.integers(0, 5000), guess=st.integers(1, 5000))
def test_the_largest_that_fits_is_found_within_the_resolution(limit, guess):
    asked = []

    def answer(batch: int) -> str:
        asked.append(batch)
        return "" if batch <= limit else "too many"

    found = largest_fitting(answer, guess)
    assert found <= limit
    assert limit - found <= max(1, int(limit * RESOLUTION)) - 1
    assert all(batch >= 1 for batch in asked) and len(set(asked)) == len(asked)
    assert len(asked) <= 40


def test_a_good_guess_takes_few_questions():
    asked = []
    limit = 1000
    largest_fitting(lambda batch: asked.append(batch) or ("" if batch <= limit else "no"), 990)
    assert len(asked) <= 4
