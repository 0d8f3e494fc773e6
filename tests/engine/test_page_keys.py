"""Keys of pages: equal where and only where tokens are known to be equal from the beginning, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.engine.page_keys import extend_chain, hashed_keys, id_keys
from nanoserve.trace.types import Ragged, Trace


def trace_of(prompts, outputs, ids, block_tokens, session=None, turn=None) -> Trace:
    offsets = np.cumsum([0, *map(len, ids)])
    return Trace(
        name="hashed",
        source="a test",
        arrival_s=np.zeros(len(prompts)),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(outputs),
        session=None if session is None else np.array(session),
        turn=None if turn is None else np.array(turn),
        prefix_hashes=Ragged(np.array([one for row in ids for one in row], np.int64), offsets),
        prefix_block_tokens=block_tokens,
    ).validated()


@given(
    shared=st.integers(0, 5),
    own=st.integers(0, 4),
    block_tokens=st.sampled_from([1, 3, 4, 16]),
    page_tokens=st.sampled_from([1, 2, 4, 5, 16, 64]),
    rest=st.integers(0, 3),
)
def test_pages_are_shared_where_whole_blocks_say_so(shared, own, block_tokens, page_tokens, rest):
    """Two prompts that agree in `shared` blocks; ids are of any sign and size."""
    common = [-(1 << 62) + block for block in range(shared)]
    rows = [[*common, *(1000 * which + block for block in range(1, own + 1))] for which in (1, 2)]
    tokens = (shared + own) * block_tokens + rest + 1
    keys = hashed_keys(trace_of([tokens] * 2, [1] * 2, rows, block_tokens), page_tokens)
    first, second = keys(0, tokens), keys(1, tokens)
    assert len(first) == len(second) == (shared + own) * block_tokens // page_tokens
    assert len(set(first)) == len(first)
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert same == shared * block_tokens // page_tokens and first[:same] == second[:same]
    assert keys(0, page_tokens * 2 - 1) == first[:1]


def test_what_was_generated_is_known_from_the_next_turn_that_covers_it():
    rows = [[1, 2], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]
    trace = trace_of([9, 21, 25], [6, 9, 1], rows, 4, session=[0, 0, 0], turn=[0, 1, 2])
    keys = hashed_keys(trace, 4)
    after = keys(1, 21)
    assert keys(0, 15) == after[:3]  # 9 + 6 tokens fill three pages, of which the prompt's blocks cover two
    assert keys(0, 9) == after[:2]
    assert len(keys(1, 30)) == 5  # the third turn is shorter than the second with its answer


@pytest.mark.parametrize(
    ("rows", "session"), [([[1, 2], [1, 9, 3, 4, 5]], [0, 0]), ([[1, 2], [1, 2, 3, 4, 5]], [0, 1])]
)
def test_another_text_or_another_session_says_nothing_of_what_was_generated(rows, session):
    trace = trace_of([9, 21], [6, 9], rows, 4, session=session, turn=[0, 1])
    assert len(hashed_keys(trace, 4)(0, 15)) == 2


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20), st.integers(1, 5))
def test_keys_of_ids_agree_as_far_as_whole_pages_do(first, second, page_tokens):
    ids = [first, second]
    keys = id_keys(ids.__getitem__, page_tokens)
    ends = [range(page_tokens, len(row) + 1, page_tokens) for row in ids]
    pages = [[tuple(row[:end]) for end in ends[which]] for which, row in enumerate(ids)]
    for place, (a, b) in enumerate(zip(keys(0, len(first)), keys(1, len(second)), strict=False)):
        assert (a == b) == (pages[0][place] == pages[1][place])
    assert len(keys(0, len(first))) == len(pages[0])


def test_a_chain_that_grows_is_the_chain_that_was_made_at_once():
    ids, grown, whole = list(range(50)), [], []
    for length in (3, 8, 9, 31, 50):
        extend_chain(grown, ids[:length], 4)
    extend_chain(whole, ids, 4)
    assert grown == whole and len(whole) == 12
