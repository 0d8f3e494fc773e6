"""`when_full = 'fail'`: nobody waits for memory, and who ends for want of it leaves the evidence."""

import itertools
import re

import pytest

from nanoserve.engine.faults import Leak
from nanoserve.engine.types import FinishReason
from tests.engine.factories import FIXED_TICKS, Job, held_pages, make_engine
from tests.engine.test_overload import MOST_PLANS, PAGE_TOKENS, REQUESTS, SEQS, jobs

EVIDENCE = re.compile(
    r"tried to allocate (\d+) blocks; (\d+) of (\d+) free, largest free run (\d+); (\d+) sequences hold (\d+), "
    r"(\d+) kept sessions hold (\d+); largest holder (session|request|none)( \d+)? with (\d+)"
)
FULL = FinishReason.OUT_OF_MEMORY.value


def run(load: list[Job], **options):
    engine = make_engine(load, when_full="fail", **options)
    engine.run()
    return engine


def columns_of(engine) -> dict[str, list]:
    return engine.log.request_columns()


def test_a_request_without_room_for_its_prompt_fails_at_once_and_says_who_holds_the_pool():
    """A request that could run alone: 9 of 16 pages are free, and it needs 10 for its prompt."""
    engine = run([Job(0, 24, 40, session=7), Job(1, 40, 4)], num_pages=16)
    columns = columns_of(engine)
    assert columns["finish_reason"] == ["length", FULL]
    assert columns["detail"][1] == (
        "tried to allocate 10 blocks; 9 of 16 free, largest free run 9; 1 sequences hold 7, 0 kept sessions hold 0; "
        "largest holder session 7 with 7"
    )
    assert columns["admitted_s"][1] is None and columns["allocated_pages"] == [16, 0]


def test_whoever_joined_last_fails_where_a_decode_step_lacks_pages_and_keeps_its_tokens():
    engine = run([Job(0, 8, 30), Job(0, 8, 30), Job(0, 8, 30)], num_pages=20)
    columns = columns_of(engine)
    assert columns["finish_reason"] == ["length", "length", FULL] and columns["preemptions"] == [0, 0, 0]
    assert columns["output_tokens"] == [30, 30, 17]
    assert columns["first_token_s"][2] < columns["finish_s"][2] < columns["finish_s"][0]
    assert columns["detail"][2].startswith("tried to allocate 3 blocks; 2 of 20 free, largest free run 2; 3 sequences")
    assert columns["allocated_pages"][2] == 6 and columns["kv_tokens"][2] == 8 + 17 - 1


def test_room_in_total_is_not_room_in_one_run():
    """Four short runs leave and their neighbours stay: enough pages are free, not enough of them together."""
    load = [*(Job(0, 4, 5 if index % 2 else 40) for index in range(4)), Job(20 * FIXED_TICKS, 8, 12)]
    engine = run(load, num_pages=28, allocator="contiguous")
    columns = columns_of(engine)
    assert columns["finish_reason"][4] == FULL
    wanted, free, total, largest, holders, held = map(int, EVIDENCE.fullmatch(columns["detail"][4]).groups()[:6])
    assert (wanted, total, holders) == (5, 28, 2) and largest < wanted <= free and free + held == total


def test_who_waits_for_a_slot_still_waits_and_may_time_out():
    load = [Job(0, 4, 40), Job(0, 4, 4)]
    patient, hurried = run(load, max_seqs=1), run(load, max_seqs=1, timeout_s=30 * FIXED_TICKS * 2.0**-60)
    assert columns_of(patient)["finish_reason"] == ["length", "length"]
    assert columns_of(hurried)["finish_reason"] == ["timed_out", "timed_out"]


def settings() -> list[dict]:
    """Small pools, crossed with what may share, keep, guess or hold on to memory."""
    pools = [{"num_pages": SEQS * pages} for pages in (1, 3)]
    batchings = [{"batching": name} for name in ("mixed", "prefill_first", "static")]
    memory = [
        {},
        {"prefix_cache": "lru", "draft": "ngram", "draft_tokens": 2},
        {"keep_session_s": 1e-8},
        {"allocator": "contiguous", "keep_session_s": 1e-8, "policy": "fair_share"},
        {"leak": Leak(20, 1), "keep_session_s": 1e-10},
    ]
    return [{**a, **b, **c} for a, b, c in itertools.product(pools, batchings, memory)]


@pytest.mark.parametrize("knobs", settings(), ids=lambda knobs: "-".join(str(value) for value in knobs.values()))
def test_under_overload_every_request_leaves_with_a_reason_whose_numbers_add_up(knobs: dict):
    load = [
        Job(job.arrival_ticks, job.prompt_tokens, job.output_tokens, job.client, session=index % 30)
        for index, job in enumerate(jobs(seed=1, longest_tokens=knobs["num_pages"] * PAGE_TOKENS // 2))
    ]
    plans = itertools.count()
    engine = make_engine(
        load, max_seqs=SEQS, max_step_tokens=32, page_tokens=PAGE_TOKENS, when_full="fail", queue_limit=40, **knobs
    )
    engine.run(should_stop=lambda: next(plans) > MOST_PLANS)
    columns = columns_of(engine)
    assert len(columns["request"]) == REQUESTS and {FULL} < set(columns["finish_reason"]) <= {"length", "refused", FULL}
    for reason, detail in zip(columns["finish_reason"], columns["detail"], strict=True):
        if reason != FULL:
            continue
        found = EVIDENCE.fullmatch(detail)
        wanted, free, total, largest, holders, held, sessions, kept = map(int, found.groups()[:8])
        lost = 0 if engine.scheduler.memory.leaking is None else engine.scheduler.memory.leaking.lost_pages
        assert total == knobs["num_pages"] and 0 <= total - free - held - kept <= lost
        assert wanted > (largest if knobs.get("allocator") == "contiguous" else free)
        assert (found[9] == "none") == (holders + sessions == 0)
    assert sum(columns["preemptions"]) == 0
    assert held_pages(engine.scheduler) == 0 and not engine.scheduler.sequences
    assert sorted(engine.load.returned) == list(range(REQUESTS))


def test_admission_control_is_what_is_left_out():
    """The same load on the same pages: one engine makes requests wait, the other lets them fail."""
    load = jobs(seed=2, longest_tokens=SEQS * PAGE_TOKENS)
    options = {"num_pages": 3 * SEQS, "max_seqs": SEQS, "page_tokens": PAGE_TOKENS}
    failing, waiting = run(load, **options), make_engine(load, **options)
    waiting.run()
    assert columns_of(failing)["finish_reason"].count(FULL) > REQUESTS / 10
    assert set(columns_of(waiting)["finish_reason"]) == {"length"}
