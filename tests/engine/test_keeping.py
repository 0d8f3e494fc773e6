"""Kept sessions: a next turn computes only what is new, in time, on the same pages, and at nobody's cost."""

import pytest

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.keeping import KeptSessions
from nanoserve.engine.pages import CheckedPagePool
from nanoserve.engine.types import MoveKind, Request, to_seconds
from nanoserve.specs.errors import ConfigError
from tests.engine.factories import Job, LinearExecutor, held_pages, make_engine

LATER = 10**9  # ticks: when the first turns below have long ended
KEEP_S = to_seconds(2 * LATER)


def run(load: list[Job], executor: LinearExecutor | None = None, **options):
    engine = make_engine(load, executor=executor, **{"keep_session_s": KEEP_S} | options)
    engine.run()
    return engine


def turns(*lengths: tuple[int, int], session: int = 0) -> list[Job]:
    """Turns of one session, each long after the one before."""
    return [Job(LATER * turn, prompt, output, session=session) for turn, (prompt, output) in enumerate(lengths)]


def test_a_next_turn_prefills_only_what_is_new():
    engine = run(turns((10, 6), (20, 5), (40, 3)))
    columns, steps = engine.log.request_columns(), engine.log.step_columns(64)
    assert columns["cached_tokens"] == [0, 15, 24]  # the last token of an answer was never written
    assert steps["prefill_tokens"].sum() == 10 + 5 + 16
    assert (steps["prefix_lookup_tokens"].sum(), steps["prefix_hit_tokens"].sum()) == (70, 39)


@pytest.mark.parametrize("allocator", ["paged", "contiguous"])
def test_a_turn_that_comes_too_late_computes_everything(allocator: str):
    first = run(turns((10, 6)), allocator=allocator)
    end = first.clock.now()
    for gap, cached in ((1, 15), (0, 0), (-1, 0)):
        keep_s = to_seconds(LATER - end + gap)
        engine = run(turns((10, 6), (20, 5)), allocator=allocator, keep_session_s=keep_s)
        assert engine.log.request_columns()["cached_tokens"] == [0, cached]


def test_a_shorter_prompt_begins_with_something_else():
    engine = run(turns((10, 6), (15, 5), (40, 1)))
    assert engine.log.request_columns()["cached_tokens"] == [0, 0, 19]


def test_other_sessions_and_requests_without_one_find_nothing():
    engine = run([*turns((10, 6)), Job(LATER, 20, 5, session=1), Job(LATER, 20, 5)])
    assert engine.log.request_columns()["cached_tokens"] == [0, 0, 0]
    assert {entry.session for entry in engine.scheduler.memory.kept} == {0, 1}
    assert engine.log.step_columns(64)["prefix_lookup_tokens"].sum() == 10 + 20


def test_only_a_turn_that_was_completed_is_kept():
    timed_out = run([Job(0, 10, 60, session=0)], timeout_s=to_seconds(5 * 10**6))
    assert timed_out.log.request_columns()["finish_reason"] == ["timed_out"]
    assert timed_out.scheduler.pool.used_count == 0
    stopped = run(turns((10, 60), (40, 5)), LinearExecutor(stops={0: 6}))
    assert stopped.log.request_columns()["cached_tokens"] == [0, 15]  # and not what was written after the stop


def test_kept_pages_are_those_of_the_kept_tokens_and_go_on_with_the_next_turn():
    executor = LinearExecutor()
    engine = run(turns((10, 6), (20, 5)), executor)
    rows = {row[0]: row for plan in executor.plans for row in plan[3]}
    assert rows[1][5][:4] == rows[0][5]
    (entry,) = engine.scheduler.memory.kept
    assert (entry.tokens, len(entry.pages)) == (24, 6) and engine.scheduler.pool.used_count == 6


def test_the_oldest_session_goes_before_anybody_waits():
    load = [Job(0, 12, 2, session=0), Job(LATER, 12, 2, session=1), Job(LATER + LATER // 2, 30, 3)]
    engine = run([*load, Job(2 * LATER, 14, 2, session=1), Job(2 * LATER, 14, 2, session=0)], num_pages=12)
    columns = engine.log.request_columns()
    assert columns["cached_tokens"] == [0, 0, 0, 13, 0]
    assert columns["preemptions"] == [0] * 5
    assert columns["admitted_s"] == columns["arrival_s"]


def test_a_running_sequence_takes_pages_from_sessions_before_anybody_is_preempted():
    load = [Job(0, 16, 2, session=0), Job(0, 16, 2, session=1), Job(LATER, 8, 30)]
    engine = run(load, num_pages=16)
    columns = engine.log.request_columns()
    assert columns["finish_reason"] == ["length"] * 3 and columns["preemptions"] == [0] * 3
    assert [entry.session for entry in engine.scheduler.memory.kept] == [1]  # one had to go


def test_where_nobody_waits_kept_sessions_stay_and_are_named():
    load = [Job(0, 24, 8, session=5), Job(LATER, 30, 8)]
    engine = run(load, num_pages=14, when_full="fail")
    assert engine.log.request_columns()["detail"][1] == (
        "tried to allocate 8 blocks; 6 of 14 free, largest free run 6; 0 sequences hold 0, 1 kept sessions hold 8; "
        "largest holder session 5 with 8"
    )


# ---- contiguous runs ----


def moves_of(load: list[Job], **options) -> tuple[list[int], list[tuple]]:
    """Tokens found by each request, and the copies that were made."""
    copies = []

    class Watching(LinearExecutor):
        def submit(self, plan):
            copies.extend((move.index, move.tokens, move.source, move.pages) for move in plan.moves)
            assert all(move.kind is MoveKind.COPY for move in plan.moves)
            return super().submit(plan)

    engine = run(load, Watching(), allocator="contiguous", **options)
    assert held_pages(engine.scheduler) == 0
    assert engine.log.step_columns(64)["copied_tokens"].sum() == sum(copy[1] for copy in copies)
    return engine.log.request_columns()["cached_tokens"], copies


def test_a_run_grows_in_place_where_there_is_room_behind_it():
    assert moves_of(turns((10, 6), (20, 5), (40, 3))) == ([0, 15, 24], [])


def test_a_run_without_room_behind_it_is_copied_to_a_new_one():
    neighbour = Job(1, 10, 6, session=1)  # right behind the first run of four pages
    found, copies = moves_of([*turns((10, 6)), neighbour, Job(LATER, 20, 5, session=0)])
    assert found == [0, 0, 15]
    assert copies == [(2, 15, (0, 1, 2, 3), (8, 9, 10, 11))]


def test_what_a_session_has_goes_last_when_it_is_itself_in_the_way():
    """Six pages are free in one run, and six are needed in place of the four that are kept before a neighbour."""
    load = [*turns((10, 6)), Job(1, 10, 200 - 10, session=1), Job(LATER // 50, 20, 5, session=0)]
    engine = run(load, allocator="contiguous", num_pages=54 + 5)
    columns = engine.log.request_columns()
    assert columns["finish_reason"] == ["length"] * 3
    assert columns["cached_tokens"] == [0, 0, 0]


# ---- the object itself ----


def request(session: int | None, prompt_tokens: int) -> Request:
    return Request(index=0, arrival_ticks=0, prompt_tokens=prompt_tokens, output_tokens=1, session=session)


def test_entries_leave_in_the_order_in_which_their_turns_ended():
    pool = CheckedPagePool(8)
    kept = KeptSessions(to_seconds(100), pool)
    for session, ticks in ((0, 30), (1, 10), (2, 20)):
        kept.keep(session, pool.alloc(2), 5, ticks)
    kept.expire(109)
    assert [entry.session for entry in kept] == [0, 1, 2]
    kept.expire(110)
    assert [entry.session for entry in kept] == [0, 2] and kept.tokens == 10
    second = kept.find(request(2, 6))
    assert second is not None and kept.find(request(2, 5)) is None and kept.find(request(None, 6)) is None
    assert kept.drop_oldest(but=second) and [entry.session for entry in kept] == [2]
    assert not kept.drop_oldest(but=second)
    kept.keep(2, pool.alloc(1), 3, 40)
    assert pool.used_count == 1 and kept.tokens == 3
    assert kept.drop_oldest() and not kept.drop_oldest()
    assert pool.used_count == kept.tokens == len(kept) == 0


def test_a_prefix_cache_keeps_sessions_already():
    with pytest.raises(
        ConfigError, match=r"Engine\.keep_session_s = 5\.0 does not go with Engine\.prefix_cache = 'lru'"
    ):
        EngineConfig(keep_session_s=5.0, prefix_cache="lru")
