"""Looking tokens up in a sequence's own past, against a search by hand."""

from hypothesis import given
from hypothesis import strategies as st

from nanoserve.executors.drafting import NgramDrafter


def searched(tokens: list[int], longest: int, shortest: int, count: int) -> list[int]:
    """The most recent place where the longest end stood before, by looking at every place."""
    for size in range(longest, shortest - 1, -1):
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[len(tokens) - size :]:
                known = list(tokens)
                while len(known) < len(tokens) + count:
                    known.append(known[start + size + len(known) - len(tokens)])
                return known[len(tokens) :]
    return []


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(1, 5), max_size=10),
)
def test_the_most_recent_longest_match_is_continued(tokens, shortest, more, growth):
    longest, drafter, known = shortest + more - 1, NgramDrafter(shortest + more - 1, shortest), len(tokens)
    for grown in [0, *growth]:
        known = min(len(tokens), known + grown) if grown else max(1, len(tokens) // 2)
        expected = searched(tokens[:known], longest, shortest, 5)
        assert drafter.continuation(0, tokens[:known], 5) == expected


def test_what_repeats_is_guessed_on_and_on():
    assert NgramDrafter(3).continuation(0, [9, 1, 2, 1, 2, 1], 5) == [2, 1, 2, 1, 2]


def test_nothing_is_guessed_where_nothing_was_said_before():
    assert NgramDrafter(3).continuation(0, [1, 2, 3, 4], 5) == []


def test_a_request_that_left_is_forgotten():
    drafter = NgramDrafter(2)
    drafter.continuation(0, [1, 2, 1], 1)
    drafter.release(0)
    assert drafter.continuation(0, [7, 8, 9], 1) == []
