"""The page pool: accounting holds under any order of operations, and misuse is reported at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.engine.pages import CheckedPagePool, PageAccountingError, PagePool


@given(st.lists(st.tuples(st.sampled_from(["alloc", "one", "share", "free"]), st.integers(0, 6)), max_size=60))
def test_references_equal_holders_and_free_plus_used_is_all(operations):
    pool, held = CheckedPagePool(12), []
    for name, number in operations:
        if name == "alloc" and number <= pool.free_count:
            held.append(pool.alloc(number))
        elif name == "one" and pool.free_count:
            held.append([pool.alloc_one()])
        elif name == "share" and held:
            pages = held[number % len(held)]
            pool.share(pages)
            held.append(list(pages))
        elif name == "free" and held:
            pool.free(held.pop(number % len(held)))
        everything = [page for pages in held for page in pages]
        assert [pool.holders(page) for page in range(12)] == [everything.count(page) for page in range(12)]
        assert pool.used_count == len(set(everything))
        assert pool.free_count + pool.used_count == pool.num_pages


def test_a_page_freed_twice_is_reported():
    pool = CheckedPagePool(4)
    pages = pool.alloc(2)
    pool.free(pages)
    with pytest.raises(PageAccountingError, match="freed twice"):
        pool.free(pages)


def test_a_free_page_cannot_be_shared():
    with pytest.raises(PageAccountingError, match="is free"):
        CheckedPagePool(4).share([1])


def test_a_page_that_is_listed_twice_is_freed_twice():
    pool = CheckedPagePool(4)
    (page,) = pool.alloc(1)
    with pytest.raises(PageAccountingError, match="freed twice"):
        pool.free([page, page])


def test_pages_are_handed_out_in_one_order_one_by_one_or_together():
    first, second = CheckedPagePool(6), CheckedPagePool(6)
    for pool in (first, second):
        pool.free(pool.alloc(3))
    assert first.alloc(4) == [second.alloc_one() for _ in range(4)]


def test_an_empty_pool_gives_nothing():
    pool = CheckedPagePool(2)
    pool.alloc(2)
    for alloc in (lambda: pool.alloc(1), pool.alloc_one):
        with pytest.raises(PageAccountingError, match="0 of 2 free"):
            alloc()


@given(st.lists(st.tuples(st.sampled_from(["alloc", "one", "free"]), st.integers(0, 6)), max_size=60))
def test_a_pool_that_only_counts_gives_the_pages_of_one_that_checks(operations):
    pools, held = (PagePool(12), CheckedPagePool(12)), []
    for name, number in operations:
        if name == "alloc" and number <= pools[0].free_count:
            held.append([pool.alloc(number) for pool in pools])
        elif name == "one" and pools[0].free_count:
            held.append([[pool.alloc_one()] for pool in pools])
        elif name == "free" and held:
            for pool, pages in zip(pools, held.pop(number % len(held)), strict=True):
                pool.free(pages)
        assert all(one == other for one, other in held)
        assert pools[0].free_pages == pools[1].free_pages and pools[0].used_count == pools[1].used_count


def test_a_pool_that_only_counts_reports_a_page_freed_twice_before_all_are_back():
    pool = PagePool(6)
    first, second = pool.alloc(2), pool.alloc(3)
    pool.free(first)
    pool.free(first[:1])
    with pytest.raises(PageAccountingError, match="7 pages are free of 6: one was freed twice"):
        pool.free(second)
