"""The contiguous allocator: runs are consecutive, disjoint, first fit, and come back whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.engine.pages import PageAccountingError
from nanoserve.engine.runs import RunPool
from tests.engine.factories import FIXED_TICKS, Job, LinearExecutor, make_engine

PAGES = 40


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12), st.integers(0, 100)), max_size=80))
def test_runs_are_what_a_map_of_pages_says(operations):
    pool, used, held = RunPool(PAGES), [False] * PAGES, []
    for give_back, count, which in operations:
        if give_back and held:
            pages = held.pop(which % len(held))
            pool.free(pages)
            for page in pages:
                used[page] = False
        fits = [start for start in range(PAGES - count + 1) if not any(used[start : start + count])]
        assert (pool.largest_free_run >= count) == bool(fits)
        if fits and not give_back:
            pages = pool.alloc(count)
            assert pages == list(range(fits[0], fits[0] + count))
            held.append(pages)
            for page in pages:
                used[page] = True
        assert pool.free_count == used.count(False)
        assert pool.used_count == used.count(True)
    for pages in held:
        pool.free(pages)
    assert pool.largest_free_run == PAGES


@given(st.lists(st.tuples(st.sampled_from(["alloc", "free", "extend", "split"]), st.integers(1, 12)), max_size=80))
def test_runs_that_grow_and_are_split_are_what_a_map_of_pages_says(operations):
    pool, held = RunPool(PAGES), []
    for operation, number in operations:
        taken = {page for run in held for page in run}
        if operation == "alloc" and pool.largest_free_run >= number:
            held.append(pool.alloc(number))
        elif held and operation == "free":
            pool.free(held.pop(number % len(held)))
        elif held and operation == "extend":
            run = held[number % len(held)]
            room = next((n for n in range(PAGES) if run[-1] + 1 + n in taken or run[-1] + 1 + n == PAGES), 0)
            assert pool.room_after(run) == room
            if number > room:
                with pytest.raises(PageAccountingError, match=f"{room} are free"):
                    pool.extend(run, number)
            else:
                pool.extend(run, number)
        elif held and operation == "split":
            run = held.pop(number % len(held))
            count = min(number - 1, len(run))
            pool.split(run, count)
            held += [part for part in (run[:count], run[count:]) if part]
        assert all(run == list(range(run[0], run[0] + len(run))) for run in held)
        assert pool.used_count == len({page for run in held for page in run}) == sum(map(len, held))
    for run in held:
        pool.free(run)
    assert pool.largest_free_run == PAGES


def test_what_is_not_a_run_in_use_is_not_taken_back():
    pool = RunPool(8)
    pages = pool.alloc(4)
    with pytest.raises(PageAccountingError, match="not a run in use"):
        pool.free(pages[:2])
    pool2 = RunPool(8)
    pages = pool2.alloc(4)
    pool2.free(pages)
    with pytest.raises(PageAccountingError, match="not a run in use"):
        pool2.free(pages)
    with pytest.raises(PageAccountingError, match="the longest has 8"):
        pool2.alloc(9)


def run(jobs, **config):
    engine = make_engine(jobs, **config)
    engine.run()
    return engine


def test_the_worst_case_is_reserved_and_nothing_is_preempted():
    jobs = [Job(0, 8, 30)] * 6
    contiguous, paged = (run(jobs, num_pages=14, allocator=name) for name in ("contiguous", "paged"))
    assert sum(paged.log.request_columns()["preemptions"]) > 0
    steps = contiguous.log.step_columns(14)
    assert steps["preemptions"].sum() == 0
    assert set(steps["pages_used"].tolist()) == {10}  # 37 positions in pages of 4, one request at a time


def test_free_pages_in_short_runs_serve_nobody():
    """External fragmentation: six pages are free, none of them beside more than one other, and a run of four waits."""
    jobs = [*(Job(0, 4, 5 if index % 2 else 40) for index in range(4)), Job(1, 20, 20)]
    engine = run(jobs, num_pages=28, allocator="contiguous")
    steps = engine.log.step_columns(28)
    blocked = (steps["waiting"] == 1) & (steps["pages_total"] - steps["pages_used"] > steps["largest_free_run"])
    assert blocked.any()
    paged = run(jobs, num_pages=28).log.step_columns(28)
    assert (paged["largest_free_run"] == paged["pages_total"] - paged["pages_used"]).all()


def test_paging_runs_at_least_twice_as_many_at_once():
    """Limits far above what is generated are what a reservation pays for: the client asks for 80 and stops at 10."""
    jobs = [Job(0, 8, 80)] * 32
    together = {}
    for name in ("paged", "contiguous"):
        executor = LinearExecutor(stops=dict.fromkeys(range(32), 10))
        engine = run(jobs, num_pages=100, max_seqs=32, allocator=name, executor=executor)
        together[name] = engine.log.step_columns(100)["running"].max()
        assert engine.log.request_columns()["output_tokens"] == [10] * 32
    assert together["paged"] >= 2 * together["contiguous"]


def test_a_reservation_is_held_from_admission_on():
    engine = run([Job(0, 8, 30), Job(5 * FIXED_TICKS, 8, 30)], num_pages=40, allocator="contiguous")
    rows = {row[0]: row[5] for plan in engine.executor.plans for row in plan[3]}
    assert rows == {0: tuple(range(10)), 1: tuple(range(10, 20))}
