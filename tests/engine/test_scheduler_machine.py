"""A state machine over pages and scheduler: admit, step, finish, abort, preempt, in any order, on small pools.

It plays the device as well: what every page holds is written down, position by position, moved where a plan moves it,
and looked at before a row reads it. So a page that is shared, cached, swapped or reused at the wrong moment is found.
The scheduler's knobs are drawn from their cross product (`factories.KNOBS`); what must hold, holds for all of them.
"""

import os
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.faults import Leak
from nanoserve.engine.log import RunLog
from nanoserve.engine.runs import RunPool
from nanoserve.engine.scheduler import Scheduler
from nanoserve.engine.sequence import pages_for
from nanoserve.engine.types import TICKS_PER_S, Arrived, FinishReason, Kind, MoveKind, Request
from tests.engine.factories import KNOBS, LinearExecutor, content, held_pages, knobs_strategy, kv_facts, possible

MAX_REQUESTS = 200
TIMEOUT_TICKS = 1 << 30
CROWDED_RUNS = 200
EXAMPLES = int(os.environ.get("NANOSERVE_MACHINE_EXAMPLES", "200"))


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler and checks it against what a reader would count by hand."""

    @initialize(
        room=st.integers(1, 60),
        page_tokens=st.sampled_from([1, 4, 16]),
        max_seqs=st.integers(1, 6),
        chunk=st.sampled_from([None, 1, 5]),
        window=st.sampled_from([None, 7]),
        leak=st.sampled_from([None, None, Leak(2, 1), Leak(1, 3)]),
        knobs=knobs_strategy,
    )
    def start(self, room, page_tokens, max_seqs, chunk, window, leak, knobs):
        num_pages = max(1, 4 * room // page_tokens)
        config = EngineConfig(
            max_seqs=max_seqs,
            max_step_tokens=max(max_seqs * (1 + (knobs["draft"] != "none") * knobs["draft_tokens"]), 8),
            prefill_chunk_tokens=chunk,
            page_tokens=page_tokens,
            timeout_s=TIMEOUT_TICKS / TICKS_PER_S,
            deadline_s=2.0**-32,
            static_timeout_s=2.0**-36,
            **knobs,
        )
        self.config, self.window = config, window
        self.log = RunLog(MAX_REQUESTS)
        self.scheduler = Scheduler(
            config,
            num_pages=num_pages,
            max_context_tokens=120,
            log=self.log,
            window_tokens=window,
            facts=kv_facts(lambda index: self.clients[index], page_tokens, leak),
        )
        self.clients: list[int] = []
        self.sessions: list[int | None] = []
        self.kv: dict[tuple[int, int], object] = {}  # (page, offset) -> what is there
        self.host: dict[int, list[object]] = {}  # by request
        self.executor = LinearExecutor()
        self.now, self.added, self.refused, self.produced = 0, 0, set(), {}
        self.finished, self.expired, self.failed = set(), set(), set()
        self.arrivals = {}

    @rule(
        prompt=st.integers(1, 60),
        output=st.integers(1, 40),
        client=st.integers(0, 2),
        priority=st.integers(0, 2),
        session=st.sampled_from([None, 0, 1, 2]),
        elsewhere=st.booleans(),
        requests=st.integers(1, 8),
    )
    def admit(self, prompt, output, client, priority, session, elsewhere, requests):
        for _ in range(min(requests, MAX_REQUESTS - self.added)):
            self._admit(prompt, output, client, priority, session, elsewhere)

    def _admit(self, prompt, output, client, priority, session, elsewhere):
        request = Request(
            index=self.added,
            arrival_ticks=self.now,
            prompt_tokens=prompt,
            output_tokens=output,
            client=client,
            priority=priority,
            session=session,
        )
        fits = pages_for(prompt + output - 1, self.config.page_tokens) <= self.scheduler.pool.num_pages
        fits &= self.config.queue_limit is None or len(self.scheduler.waiting) < self.config.queue_limit
        self.clients.append(client)
        self.sessions.append(session)
        arrived = Arrived(kv_tokens=prompt, generated=1) if elsewhere and output > 1 else None
        if arrived:
            self.log.sent(request, self.now)
        assert self.scheduler.add(request, self.now, arrived) == fits  # 60 + 40 is always within the context
        self.arrivals[self.added] = self.now
        if not fits:
            self.refused.add(self.added)
        self.produced[self.added] = 1 if arrived else 0
        self.added += 1

    @rule(plans=st.integers(1, 12), limit=st.integers(1, 9), stop=st.booleans())
    def step(self, plans, limit, stop):
        for _ in range(plans):
            self._step(limit, stop)
            stop = False

    def _step(self, limit, stop):
        self._expire()
        before = {s.index: self._progress(s) for s in self.scheduler.sequences.values()}
        plan = self.scheduler.plan(self.now, lambda counts, now: limit)
        failed = self._fail()
        if plan is None:
            if not failed:
                self._wait_for_the_batch()
            return
        rows = plan.rows()
        assert rows, "a plan that advances nobody"
        assert self.config.batching == "mixed" or plan.kind is not Kind.MIXED
        assert plan.padding_rows == 0 or self.config.batching == "static"
        assert plan.counts.decode_seqs + plan.padding_rows + plan.counts.prefill_seqs <= self.config.max_seqs
        assert 1 <= plan.horizon <= limit or plan.kind is not Kind.DECODE
        assert sum(r.new_tokens for r in rows) <= self.config.max_step_tokens
        self._check_rows(plan, rows)
        self._move(plan.moves)
        self._read_and_write(plan, rows)
        if stop:
            self.executor.stops[rows[0].index] = rows[0].generated + 1
        result = self.executor.submit(plan).result()
        end = self.now + result.duration_ticks
        self.pages_before = {row.index: tuple(row.pages) for row in rows}
        finished = self.scheduler.apply(plan, result, self.now, end)
        for row in rows:
            if row.samples:
                gained = result.stopped.get(row.index, (result.gained or {}).get(row.index, plan.horizon))
                self.produced[row.index] += gained
        self.finished.update(finished)
        self._spoil(plan, rows, result)
        for index, progress in before.items():
            sequence = self.scheduler.sequences.get(index)
            if sequence is not None and any(r.index == index for r in rows):
                assert self._progress(sequence) > progress or sequence.preemptions
        self.now = end

    @rule(which=st.integers(0, 50))
    def abort(self, which):
        alive = sorted(self.scheduler.sequences)
        if alive:
            self.scheduler.abort(alive[which % len(alive)], self.now, "asked to")

    @rule(later=st.integers(1, 1 << 28))
    def wait(self, later):
        self.now += later
        self._expire()

    def _expire(self) -> None:
        """Who leaves now has timed out, or was the last of a static batch."""
        for index in self.scheduler.expire(self.now):
            timed_out = self.arrivals[index] + TIMEOUT_TICKS <= self.now
            (self.expired if timed_out else self.finished).add(index)
            assert timed_out or self.config.batching == "static"

    def _fail(self) -> list[int]:
        """Who leaves now had no memory, or was held in a static batch whose others had none."""
        left = self.scheduler.take_failed(self.now)
        reasons = self.log.request_columns()["finish_reason"]
        failed = {index for index in left if reasons[index] == FinishReason.OUT_OF_MEMORY}
        assert not failed or self.config.when_full == "fail" or self.scheduler.memory.leaking
        assert failed == set(left) or self.config.batching == "static"
        self.failed |= failed
        self.finished |= set(left) - failed
        return left

    def _wait_for_the_batch(self) -> None:
        """Nothing was planned: nobody is here, or a static batch is being gathered that opens at a known time."""
        if self.scheduler.sequences:
            assert self.config.batching == "static"
            opens = self.scheduler.next_batch_ticks()
            assert opens is not None
            assert len(self.scheduler.waiting) < self.config.max_seqs and opens > self.now
            self.now = opens

    @invariant()
    def references_equal_holders_and_nothing_aliases(self):
        pool, memory = self.scheduler.pool, self.scheduler.memory
        held = [page for s in self.scheduler.sequences.values() for page in s.pages]
        held += [page for entry in memory.kept or () for page in entry.pages]
        lost = memory.leaking.lost_pages if memory.leaking else 0
        assert len(held) == len(set(held)) or self.config.prefix_cache != "off"
        assert pool.largest_free_run <= pool.free_count
        if not lost:
            assert pool.used_count == len(set(held))
            assert memory.repeated_tokens == (len(held) - len(set(held))) * self.config.page_tokens
        if not isinstance(pool, RunPool):
            more = [pool.holders(page) - held.count(page) for page in range(pool.num_pages)]
            assert sorted(more, reverse=True) == [1] * lost + [0] * (pool.num_pages - lost)
        else:
            for s in self.scheduler.sequences.values():
                assert s.pages == list(range(s.pages[0], s.pages[0] + len(s.pages))) if s.pages else s.slot < 0
                assert s.preemptions == 0
            assert pool.used_count == len(held) + lost
        assert pool.free_count + pool.used_count == pool.num_pages

    @invariant()
    def the_host_has_the_kv_of_those_who_were_swapped_out(self):
        away = [s for s in self.scheduler.sequences.values() if s.returns is MoveKind.IN]
        pages = sum(pages_for(s.kv_tokens, self.config.page_tokens) for s in away)
        assert self.scheduler.memory.host_pages_used == pages <= (self.config.host_pages or pages)
        assert self.config.preemption != "recompute" or not away
        assert all(s.slot < 0 and not s.pages for s in away)
        going = {move.index for move in self.scheduler.memory.moves}  # with the next plan: this one was none
        assert all(len(self.host[s.index]) == s.kv_tokens for s in away if s.index not in going)

    @invariant()
    def slots_are_unique_and_bounded(self):
        slots = [s.slot for s in self.scheduler.sequences.values() if s.slot >= 0]
        assert len(slots) == len(set(slots)) == self.scheduler.running_count <= self.config.max_seqs

    @invariant()
    def queue_is_first_come_first_served(self):
        config = self.config
        if (config.policy, config.victim) != ("fcfs", "youngest") or config.batching == "static":
            return
        waiting = [s.index for s in self.scheduler.waiting]
        running = [s.index for s in self.scheduler.sequences.values() if s.slot >= 0]
        assert waiting == sorted(waiting)
        assert not waiting or not running or max(running) < min(waiting)

    @invariant()
    def nothing_is_lost(self):
        assert self.log.finished_count + len(self.scheduler.sequences) == self.added

    def teardown(self):
        """Whatever happened, the log has it, and the engine drains: no deadlock, and an idle pool is a full pool."""
        self._check_endings()
        for _ in range(20_000):
            self.scheduler.expire(self.now)
            plan = self.scheduler.plan(self.now, lambda counts, now: 4)
            if plan is None:
                if not self._fail():
                    self._wait_for_the_batch()
                if not self.scheduler.sequences:
                    break
                continue
            result = self.executor.submit(plan).result()
            self.scheduler.apply(plan, result, self.now, self.now + 1)
        assert not self.scheduler.sequences
        assert held_pages(self.scheduler) == 0
        assert self.scheduler.memory.host_pages_used == 0

    def _check_endings(self) -> None:
        columns = self.log.request_columns()
        endings = zip(columns["request"], columns["output_tokens"], columns["finish_reason"], strict=True)
        for index, tokens, reason in endings:
            assert (reason in (FinishReason.LENGTH, FinishReason.STOP)) == (index in self.finished)
            assert (reason == FinishReason.TIMED_OUT) == (index in self.expired)
            assert (reason == FinishReason.OUT_OF_MEMORY) == (index in self.failed)
            assert index not in self.finished or tokens == self.produced[index]

    def _content(self, index, position):
        """What a request has at a position; turns of a session that is kept repeat what was said before."""
        session = self.sessions[index]
        if self.config.keep_session_s and session is not None:
            return "session", session, position
        return content(index, self.clients[index], position)

    def _place(self, pages, position) -> tuple[int, int]:
        return pages[position // self.config.page_tokens], position % self.config.page_tokens

    def _move(self, moves) -> None:
        """Copies KV as the executor does; nothing comes before everything has gone."""
        kinds = [move.kind is MoveKind.OUT for move in moves]
        assert kinds == sorted(kinds, reverse=True)
        for move in moves:
            places = [self._place(move.pages, position) for position in range(move.tokens)]
            if move.kind is MoveKind.OUT:
                self.host[move.index] = [self.kv[place] for place in places]
                continue
            if move.kind is MoveKind.COPY:
                arrives = [self.kv[self._place(move.source, position)] for position in range(move.tokens)]
            elif move.kind is MoveKind.IN:
                arrives = self.host.pop(move.index)
            else:
                arrives = [self._content(move.index, position) for position in range(move.tokens)]
            assert len(arrives) == move.tokens
            self.kv.update(zip(places, arrives, strict=True))

    def _read_and_write(self, plan, rows) -> None:
        """Every row finds what it wrote, or would have written; what it writes to is its own."""
        pool = self.scheduler.pool
        for row in rows:
            for position in range(row.start):
                assert self.kv[self._place(row.pages, position)] == self._content(row.index, position)
            for position in range(row.start, row.start + row.new_tokens + plan.horizon - 1):
                place = self._place(row.pages, position)
                assert isinstance(pool, RunPool) or pool.holders(place[0]) == 1
                self.kv[place] = self._content(row.index, position)

    def _spoil(self, plan, rows, result) -> None:
        """What a row wrote after its stop token, and of drafted tokens that were not kept, belongs to no request."""
        for row in rows[: plan.counts.decode_seqs]:
            kept = (result.gained or {}).get(row.index, row.new_tokens)
            for position in range(row.start + kept, row.start + row.new_tokens):
                self.kv[self._place(self.pages_before[row.index], position)] = "nothing"
        for row in rows:
            kept = result.stopped.get(row.index)
            if kept is not None and plan.horizon > kept:
                for position in range(row.start + kept + 1, row.start + plan.horizon):
                    self.kv[self._place(self.pages_before[row.index], position)] = "nothing"

    def _progress(self, sequence) -> tuple[int, int]:
        cohort = self.scheduler.cohort
        if sequence.join:
            return cohort.generated_of(sequence), cohort.kv_of(sequence)
        return sequence.generated, sequence.kv_tokens

    def _check_rows(self, plan, rows) -> None:
        page_tokens, counts = self.config.page_tokens, plan.counts
        for row in rows:
            assert len(row.pages) >= pages_for(row.start + max(row.new_tokens, plan.horizon), page_tokens)
        decode = [r for r in rows if self.scheduler.sequences[r.index].join]
        assert counts.decode_seqs == len(decode)
        assert counts.drafted_tokens == sum(r.new_tokens - 1 for r in decode)
        assert counts.decode_kv_tokens == sum(r.start + r.new_tokens + j for r in decode for j in range(plan.horizon))
        chunks = rows[len(decode) :]
        assert counts.prefill_tokens == sum(r.new_tokens for r in chunks)
        assert counts.prefill_pairs == sum(r.start + j + 1 for r in chunks for j in range(r.new_tokens))
        window = self.window
        if window is not None:
            assert counts.decode_window_tokens == sum(
                min(r.start + j, window - 1) + r.new_tokens for r in decode for j in range(plan.horizon)
            )
            assert counts.prefill_window_pairs == sum(
                min(r.start + j + 1, window) for r in chunks for j in range(r.new_tokens)
            )


def test_crowded_pools_keep_every_promise():
    """Hypothesis looks for short failures; these runs are long, and hardly ever have pages to spare."""
    for seed in range(CROWDED_RUNS):
        _crowded_run(random.Random(seed))


def _crowded_run(rng: random.Random) -> None:
    machine = SchedulerMachine()
    knobs = possible({name: rng.choice(values) for name, values in KNOBS.items()} | {"allocator": "paged"})
    knobs |= {"queue_limit": None, "batching": rng.choice(["mixed", "mixed", "prefill_first", "static"])}
    page_tokens, chunk, window = rng.choice([1, 4, 16]), rng.choice([None, 1, 5]), rng.choice([None, 7])
    leak = rng.choice([None, None, Leak(4, 1)])
    machine.start(rng.randint(10, 40), page_tokens, rng.randint(2, 6), chunk, window, leak, knobs)
    for _ in range(40):
        action = rng.random()
        if action < 0.25:
            prompt, output = rng.randint(1, 40), rng.randint(1, 40)
            client, priority, session = rng.randint(0, 2), rng.randint(0, 2), rng.choice([None, 0, 1])
            machine.admit(prompt, output, client, priority, session, rng.random() < 0.2, rng.randint(1, 3))
        elif action < 0.95:
            machine.step(rng.randint(1, 12), rng.randint(1, 9), rng.random() < 0.2)
        else:
            machine.abort(rng.randint(0, 50))
        machine.references_equal_holders_and_nothing_aliases()
        machine.the_host_has_the_kv_of_those_who_were_swapped_out()
        machine.slots_are_unique_and_bounded()
        machine.queue_is_first_come_first_served()
        machine.nothing_is_lost()
    machine.teardown()


SchedulerMachine.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=50)
TestSchedulerMachine = SchedulerMachine.TestCase
