"""A state machine over pages and scheduler: admit, step, finish, abort, preempt, in any order, on small pools.

The scheduler's knobs are drawn from their cross product (`factories.KNOBS`); what must hold, holds for all of them.
"""

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nanoserve.engine.log import RunLog
from nanoserve.engine.pages import PagePool
from nanoserve.engine.scheduler import Scheduler
from nanoserve.engine.sequence import pages_for
from nanoserve.engine.types import TICKS_PER_S, EngineConfig, FinishReason, Kind, Request
from tests.engine.factories import KNOBS, LinearExecutor

MAX_REQUESTS = 200
TIMEOUT_TICKS = 1 << 30
EXAMPLES = int(os.environ.get("NANOSERVE_MACHINE_EXAMPLES", "500"))


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler and checks it against what a reader would count by hand."""

    @initialize(
        num_pages=st.integers(1, 24),
        page_tokens=st.sampled_from([1, 4, 16]),
        max_seqs=st.integers(1, 6),
        chunk=st.sampled_from([None, 1, 5]),
        window=st.sampled_from([None, 7]),
        knobs=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in KNOBS.items()}),
    )
    def start(self, num_pages, page_tokens, max_seqs, chunk, window, knobs):
        config = EngineConfig(
            max_seqs=max_seqs,
            max_step_tokens=max(max_seqs, 8),
            prefill_chunk_tokens=chunk,
            page_tokens=page_tokens,
            timeout_s=TIMEOUT_TICKS / TICKS_PER_S,
            deadline_s=2.0**-32,
            static_timeout_s=2.0**-36,
            **knobs,
        )
        self.config = config
        self.log = RunLog(MAX_REQUESTS)
        self.scheduler = Scheduler(
            config, num_pages=num_pages, max_context_tokens=120, log=self.log, window_tokens=window
        )
        self.executor = LinearExecutor()
        self.now, self.added, self.refused, self.produced = 0, 0, set(), {}
        self.finished, self.expired = set(), set()
        self.arrivals = {}

    @rule(prompt=st.integers(1, 60), output=st.integers(1, 40), client=st.integers(0, 2), priority=st.integers(0, 2))
    def admit(self, prompt, output, client, priority):
        if self.added == MAX_REQUESTS:
            return
        request = Request(
            index=self.added,
            arrival_ticks=self.now,
            prompt_tokens=prompt,
            output_tokens=output,
            client=client,
            priority=priority,
        )
        fits = pages_for(prompt + output - 1, self.config.page_tokens) <= self.scheduler.pool.num_pages
        fits &= self.config.queue_limit is None or len(self.scheduler.waiting) < self.config.queue_limit
        assert self.scheduler.add(request, self.now) == fits  # 60 + 40 is always within the context
        self.arrivals[self.added] = self.now
        if not fits:
            self.refused.add(self.added)
        self.produced[self.added] = 0
        self.added += 1

    @rule(limit=st.integers(1, 9), stop=st.booleans())
    def step(self, limit, stop):
        self._expire()
        before = {s.index: self._progress(s) for s in self.scheduler.sequences.values()}
        plan = self.scheduler.plan(self.now, lambda counts: limit)
        if plan is None:
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
        if stop:
            self.executor.stops[rows[0].index] = rows[0].generated + 1
        result = self.executor.submit(plan).result()
        end = self.now + result.duration_ticks
        finished = self.scheduler.apply(plan, result, self.now, end)
        for row in rows:
            if row.samples:
                gained = result.stopped.get(row.index, plan.horizon)
                self.produced[row.index] += gained
        self.finished.update(finished)
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

    def _wait_for_the_batch(self) -> None:
        """Nothing was planned: nobody is here, or a static batch is being gathered that opens at a known time."""
        if self.scheduler.sequences:
            assert self.config.batching == "static"
            assert len(self.scheduler.waiting) < self.config.max_seqs
            opens = self.scheduler.next_batch_ticks()
            assert opens is not None and opens > self.now
            self.now = opens

    @invariant()
    def references_equal_holders_and_nothing_aliases(self):
        held = [page for s in self.scheduler.sequences.values() for page in s.pages]
        pool = self.scheduler.pool
        assert len(held) == len(set(held))
        assert pool.used_count == len(held)
        assert pool.largest_free_run <= pool.free_count
        if isinstance(pool, PagePool):
            assert all(pool.holders(page) == 1 for page in held)
        else:
            for s in self.scheduler.sequences.values():
                assert s.pages == list(range(s.pages[0], s.pages[0] + len(s.pages))) if s.pages else s.slot < 0
                assert s.preemptions == 0
        assert pool.free_count + pool.used_count == pool.num_pages

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
        assert self.log.finished_count() + len(self.scheduler.sequences) == self.added

    def teardown(self):
        """Whatever happened, the log has it, and the engine drains: no deadlock, and an idle pool is a full pool."""
        self._check_endings()
        for _ in range(20_000):
            self.scheduler.expire(self.now)
            plan = self.scheduler.plan(self.now, lambda counts: 4)
            if plan is None:
                self._wait_for_the_batch()
                if not self.scheduler.sequences:
                    break
                continue
            result = self.executor.submit(plan).result()
            self.scheduler.apply(plan, result, self.now, self.now + 1)
        assert not self.scheduler.sequences
        assert self.scheduler.pool.used_count == 0

    def _check_endings(self) -> None:
        columns = self.log.request_columns()
        endings = zip(columns["request"], columns["output_tokens"], columns["finish_reason"], strict=True)
        for index, tokens, reason in endings:
            assert (reason in (FinishReason.LENGTH, FinishReason.STOP)) == (index in self.finished)
            assert (reason == FinishReason.TIMED_OUT) == (index in self.expired)
            assert index not in self.finished or tokens == self.produced[index]

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
        assert counts.decode_kv_tokens == sum(r.start + 1 + j for r in decode for j in range(plan.horizon))
        chunks = rows[len(decode) :]
        assert counts.prefill_tokens == sum(r.new_tokens for r in chunks)
        assert counts.prefill_pairs == sum(r.start + j + 1 for r in chunks for j in range(r.new_tokens))
        window = self.scheduler.window_tokens
        if window is not None:
            assert counts.decode_window_tokens == sum(
                min(r.start + 1 + j, window) for r in decode for j in range(plan.horizon)
            )
            assert counts.prefill_window_pairs == sum(
                min(r.start + j + 1, window) for r in chunks for j in range(r.new_tokens)
            )


SchedulerMachine.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase
