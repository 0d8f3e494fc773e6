"""The cohort whose members gain what was accepted: counters, pages and what a step reads, against counting by hand."""

from hypothesis import given
from hypothesis import strategies as st

from nanoserve.engine.pages import CheckedPagePool
from nanoserve.engine.sequence import Sequence, pages_for
from nanoserve.engine.speculating import SpeculatingCohort
from nanoserve.engine.types import Request
from nanoserve.roofline.counts import StepCounts

PAGE = 4


def _sequence(index: int, kv: int, output: int, pool: CheckedPagePool) -> Sequence:
    request = Request(index=index, arrival_ticks=0, prompt_tokens=kv, output_tokens=output)
    return Sequence(request, prefill_target=kv, kv_tokens=kv, generated=1, pages=pool.alloc(pages_for(kv, PAGE)))


def _counts(cohort: SpeculatingCohort) -> StepCounts:
    full, window = cohort.attended(1)
    rows = len(cohort)
    plain = StepCounts(decode_seqs=rows, decode_kv_tokens=full, decode_window_tokens=window, sampled=rows)
    return cohort.with_drafts(plain)


members = st.lists(st.tuples(st.integers(1, 30), st.integers(2, 12)), min_size=1, max_size=6)


@given(members, st.integers(1, 5), st.sampled_from([None, 3, 9]), st.integers(0, 12), st.randoms(use_true_random=False))
def test_steps_count_what_their_rows_read_and_gain(asked, k, window, spare_pages, random):
    held = sum(pages_for(kv, PAGE) for kv, _ in asked)
    worst = [pages_for(kv + output - 1, PAGE) - pages_for(kv, PAGE) for kv, output in asked]
    pool = CheckedPagePool(held + max(max(worst), spare_pages))
    cohort = SpeculatingCohort(PAGE, k, window)
    for number, (kv, output) in enumerate(asked):
        cohort.join(_sequence(number, kv, output, pool))
    while cohort:
        while not cohort.reserve(pool, 1):
            victim = cohort.youngest()
            cohort.leave(victim)
            pool.free(victim.pages)
        counts = _counts(cohort)
        rows = [(s.kv_tokens, cohort.drafts_of(s)) for s in cohort]
        queries = [past + 1 + place for past, drafts in rows for place in range(drafts + 1)]
        seen = [min(position, window) if window else position for position in queries]
        assert counts.drafted_tokens == sum(drafts for _, drafts in rows)
        assert counts.sampled == len(queries)
        assert counts.decode_kv_tokens == sum(past + drafts + 1 for past, drafts in rows)
        assert counts.decode_kv_tokens + counts.drafted_pairs == sum(queries)
        assert counts.decode_window_tokens + counts.drafted_window_pairs == sum(seen)
        for s in cohort:
            drafts = cohort.drafts_of(s)
            assert 0 <= drafts <= min(k, s.request.output_tokens - s.generated - 1)
            assert len(s.pages) * PAGE >= s.kv_tokens + 1 + drafts
        before = {s.index: (s.kv_tokens, s.generated) for s in cohort}
        gained = {s.index: random.randint(1, 1 + cohort.drafts_of(s)) for s in cohort}
        alive = list(cohort)
        finished = cohort.advance(1, gained)
        assert finished == [s for s in alive if s.generated == s.request.output_tokens]
        assert list(cohort) == [s for s in alive if s not in finished]
        for s in alive:
            assert (s.kv_tokens, s.generated) == tuple(n + gained[s.index] for n in before[s.index])
        for s in finished:
            pool.free(s.pages)
    assert pool.used_count == 0


def test_members_draft_only_into_pages_that_no_member_needs_for_its_next_token():
    pool = CheckedPagePool(4)
    cohort = SpeculatingCohort(PAGE, draft_tokens=4)
    first, second = (_sequence(index, kv, 20, pool) for index, kv in enumerate((3, 4)))
    cohort.join(first)  # has room for one token, and would draft into a second page
    cohort.join(second)  # its page is full
    assert cohort.reserve(pool, 1) == 1
    assert [len(s.pages) for s in cohort] == [2, 2]
    assert [cohort.drafts_of(s) for s in cohort] == [4, 3]


def test_drafts_preempt_nobody():
    pool = CheckedPagePool(2)
    cohort = SpeculatingCohort(PAGE, draft_tokens=4)
    for index in range(2):
        cohort.join(_sequence(index, 3, 20, pool))
    assert cohort.reserve(pool, 1) == 1
    assert [cohort.drafts_of(s) for s in cohort] == [0, 0]
    cohort.advance(1, {0: 1, 1: 1})
    assert cohort.reserve(pool, 1) == 0


def test_a_member_never_drafts_past_its_last_token():
    pool = CheckedPagePool(20)
    cohort = SpeculatingCohort(PAGE, draft_tokens=4)
    cohort.join(_sequence(0, 6, 4, pool))  # three tokens left: two guesses and the one after them
    cohort.reserve(pool, 1)
    assert cohort.drafts_of(cohort.youngest()) == 2
    assert cohort.advance(1, {0: 3}) and not cohort.members
