"""The prefix cache as a pool: nothing is lost, nothing that is held is handed out, and the right page goes first."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.bench.prefix import block_hits
from nanoserve.engine.pages import PageAccountingError
from nanoserve.engine.prefix import CachedPagePool, GreedyDual, LeastRecentlyUsed

PAGES = 12
TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
MOONCAKE, AGENT = TRACES / "mooncake_conversation_trace.jsonl", TRACES / "agent_miniswe_smollm2_blk16.jsonl"


def lru(num_pages: int) -> CachedPagePool:
    return CachedPagePool(num_pages, LeastRecentlyUsed())


def greedy(num_pages: int) -> CachedPagePool:
    return CachedPagePool(num_pages, GreedyDual(lambda depth: 1.0 + depth))


chains = st.lists(
    st.tuples(st.sampled_from(["start", "leave"]), st.integers(0, 3), st.integers(1, 6), st.integers(0, 5)), max_size=60
)


@given(chains, st.sampled_from([lru, greedy]))
def test_a_page_holds_what_it_is_known_for_and_references_equal_holders(operations, make):
    """Sequences of families share chains of pages; every page's content is written down when it is handed out."""
    pool, held, content = make(PAGES), [], {}
    for name, family, length, which in operations:
        if name == "leave" and held:
            pool.free(held.pop(which % len(held)))
        elif name == "start":
            keys = [family * 100 + depth for depth in range(length)]
            pages = pool.find(keys)
            assert [content[page] for page in pages] == keys[: len(pages)]
            if length - pool.held(pages) > pool.free_count:
                continue
            pool.share(pages)
            new = pool.alloc(length - len(pages))
            assert not set(new) & {page for others in held for page in others}
            for page, key in zip(new, keys[len(pages) :], strict=True):
                content[page] = key
                pool.know(page, key)
            held.append([*pages, *new])
        everything = [page for pages in held for page in pages]
        assert [pool.holders(page) for page in range(PAGES)] == [everything.count(page) for page in range(PAGES)]
        assert pool.used_count == len(set(everything)) and pool.free_count + pool.used_count == PAGES
        assert pool.repeated_count == len(everything) - len(set(everything))


def test_cached_pages_are_evicted_only_when_no_empty_page_is_left():
    pool = lru(4)
    pages = pool.alloc(2)
    for page, key in zip(pages, (7, 8), strict=True):
        pool.know(page, key)
    pool.free(pages)
    assert (pool.free_count, pool.cached_count, pool.used_count) == (4, 2, 0)
    assert not set(pool.alloc(2)) & set(pages)
    assert pool.find([7, 8]) == pages
    pool.alloc_one()
    assert pool.find([7, 8]) == pages[:1]  # the deeper one went first


def test_two_sequences_that_computed_the_same_keep_a_page_each_and_one_is_known():
    pool = lru(4)
    first, second = pool.alloc_one(), pool.alloc_one()
    for page in (first, second):
        pool.know(page, 5)
    pool.free([second])
    assert pool.cached_count == 0
    pool.free([first])
    assert pool.cached_count == 1 and pool.find([5]) == [first]


@pytest.mark.parametrize("make", [lru, greedy])
def test_a_cached_page_that_is_freed_again_is_reported(make):
    pool = make(2)
    page = pool.alloc_one()
    pool.know(page, 1)
    pool.free([page])
    with pytest.raises(PageAccountingError, match="freed twice"):
        pool.free([page])
    other = pool.alloc_one()
    with pytest.raises(PageAccountingError, match="freed twice"):
        pool.free([other, other])


def test_a_pool_whose_pages_are_all_held_gives_nothing():
    pool = lru(2)
    pool.alloc(2)
    for alloc in (lambda: pool.alloc(1), pool.alloc_one):
        with pytest.raises(PageAccountingError, match="0 of 2 free"):
            alloc()


def test_the_least_recently_used_chain_goes_first_from_its_end():
    cached = LeastRecentlyUsed()
    cached.put([(2, 2), (1, 1), (0, 0)])
    cached.put([(5, 1), (4, 0)])
    cached.take(1)
    cached.put([(1, 1)])
    assert [cached.pop() for _ in range(5)] == [2, 0, 5, 4, 1]


def test_dear_pages_outlive_cheap_ones_until_the_floor_has_passed_them():
    cached = GreedyDual(lambda depth: (1.0, 10.0)[depth])
    cached.put([(0, 1)])
    for cheap in range(1, 9):
        cached.put([(cheap, 0)])
        assert cached.pop() == cheap
    cached.put([(9, 0)])
    cached.put([(10, 1)])
    assert [cached.pop(), cached.pop(), cached.pop()] == [9, 0, 10]


def test_a_page_is_worth_at_least_what_hangs_on_it():
    cached = GreedyDual(lambda depth: float(depth))
    cached.put([(3, 3), (2, 2), (1, 1)])
    cached.put([(4, 2)])
    assert [cached.pop() for _ in range(4)] == [4, 3, 2, 1]


def test_pages_that_come_and_go_do_not_fill_the_heap():
    cached = GreedyDual(lambda depth: 1.0)
    for _ in range(2000):
        cached.put([(0, 0)])
        cached.take(0)
    assert len(cached) == 0 and len(cached._heap) < 100


def hashed(path: Path) -> list[dict]:
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lru_over_the_blocks_of_mooncake_has_the_published_curve():
    """Every id counts as a block, the last one of a prompt too, which need not be full."""
    requests = [row["hash_ids"] for row in hashed(MOONCAKE)]
    blocks = sum(map(len, requests))
    published = {1_000: 0.045, 3_000: 0.065, 10_000: 0.21, 30_000: 0.33, 100_000: 0.36}
    for pages, share in published.items():
        assert sum(block_hits(lru(pages), requests)) / blocks == pytest.approx(share, abs=0.005), pages


def test_unlimited_pages_serve_the_published_share_of_mooncakes_tokens():
    """34.6%: the block that all prompts begin with is left out, of what is served and of what is asked."""
    rows = hashed(MOONCAKE)
    assert all(row["hash_ids"][0] == 0 for row in rows)
    hits = block_hits(lru(300_000), [row["hash_ids"][1:] for row in rows])
    served = sum(min(hit * 512, row["input_length"] - 512) for hit, row in zip(hits, rows, strict=True))
    assert served / sum(row["input_length"] - 512 for row in rows) == pytest.approx(0.346, abs=0.0005)


def test_agents_reuse_most_of_what_they_send():
    rows = hashed(AGENT)
    hits = block_hits(lru(40_000), [row["hash_ids"][: row["input_length"] // 16] for row in rows])
    assert 16 * sum(hits) / sum(row["input_length"] for row in rows) == pytest.approx(0.935, abs=0.0005)
