"""The cohort's closed forms against a list of members counted one by one."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from nanoserve.engine.cohort import DecodeCohort
from nanoserve.engine.pages import CheckedPagePool
from nanoserve.engine.sequence import Sequence, pages_for
from nanoserve.engine.types import Request

PAGE = 4


@dataclasses.dataclass
class Naive:
    sequence: Sequence
    kv: int
    generated: int


def _sequence(index: int, kv: int, output: int, pool: CheckedPagePool) -> Sequence:
    request = Request(index=index, arrival_ticks=0, prompt_tokens=kv, output_tokens=output)
    return Sequence(request, prefill_target=kv, kv_tokens=kv, generated=1, pages=pool.alloc(pages_for(kv, PAGE)))


@given(
    st.lists(
        st.tuples(st.sampled_from(["join", "advance", "leave"]), st.integers(1, 30), st.integers(2, 20)), max_size=40
    ),
    st.sampled_from([None, 3, 9]),
)
def test_shared_counters_equal_counting_each_member(operations, window):
    pool, cohort, naive = CheckedPagePool(5000), DecodeCohort(PAGE, window), {}
    for number, (name, size, output) in enumerate(operations):
        if name == "join":
            sequence = _sequence(number, size, output, pool)
            cohort.join(sequence)
            naive[number] = Naive(sequence, size, 1)
        elif name == "leave" and naive:
            index = sorted(naive)[size % len(naive)]
            cohort.leave(naive[index].sequence)
            assert naive[index].sequence.kv_tokens == naive[index].kv
            assert naive[index].sequence.generated == naive[index].generated
            del naive[index]
        elif name == "advance" and naive:
            steps = min(size, cohort.steps_to_change())
            assert steps >= 1
            assert cohort.reserve(pool, steps) == steps
            _check_attended(cohort, naive, steps, window)
            finished = {s.index for s in cohort.advance(steps)}
            for member in naive.values():
                member.kv += steps
                member.generated += steps
                assert len(member.sequence.pages) * PAGE >= member.kv
                assert (len(member.sequence.pages) - 1) * PAGE < member.kv  # never a page more than needed
            done = {i for i, m in naive.items() if m.generated == m.sequence.request.output_tokens}
            assert finished == done
            for index in done:
                del naive[index]
        assert cohort.kv_tokens == sum(m.kv for m in naive.values())
        assert list(cohort.members) == list(naive)


def _check_attended(cohort: DecodeCohort, naive: dict, steps: int, window: int | None) -> None:
    lengths = [m.kv + step + 1 for m in naive.values() for step in range(steps)]
    capped = [min(n, window) if window else n for n in lengths]
    assert cohort.attended(steps) == (sum(lengths), sum(capped))


def test_reserve_says_how_far_the_pages_reach():
    pool = CheckedPagePool(3)
    cohort = DecodeCohort(PAGE)
    cohort.join(_sequence(0, 4, 100, pool))  # its first page is full
    cohort.join(_sequence(1, 2, 100, pool))  # needs its second page in 2 steps
    assert cohort.reserve(pool, 10) == 2
    assert pool.free_count == 0
    cohort.advance(2)
    assert cohort.reserve(pool, 1) == 0


def test_a_step_is_paged_for_all_members_or_for_none():
    pool = CheckedPagePool(3)
    cohort = DecodeCohort(PAGE)
    members = [_sequence(index, 4, 100, pool) for index in range(2)]  # both need a page for the next step
    for member in members:
        cohort.join(member)
    assert cohort.reserve(pool, 1) == 0
    assert [len(member.pages) for member in members] == [1, 1]
    cohort.leave(members[1])
    pool.free(members[1].pages)
    assert cohort.reserve(pool, 5) == 5
    assert len(members[0].pages) == 3


def test_steps_that_nobody_decoded_in_are_not_paged():
    pool = CheckedPagePool(4)
    cohort = DecodeCohort(PAGE)
    cohort.advance(7)
    member = _sequence(0, 2, 100, pool)
    cohort.join(member)
    assert cohort.reserve(pool, 2) == 2
    assert len(member.pages) == 1
    assert cohort.reserve(pool, 3) == 3
    assert len(member.pages) == 2
