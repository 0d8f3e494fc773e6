"""The scheduler: decides what each step runs, and for how many steps nothing can change.

By default batching is continuous and mixed. One step holds every decoding sequence (one token each) and, under the
token budget, prompt chunks of sequences that are still prefilling, oldest first; then the head of the queue is admitted
while slots, pages and budget last. When a decoding sequence cannot get its next page, the youngest sequence is
preempted: it loses its pages and goes back to the queue, to be recomputed or swapped back; or a request ends instead
(`failing`). Who is next, who gives way and who may come in are functions of `policy`;
`EngineConfig.batching` keeps chunks and decoding apart (`prefill_first`), or gathers batches as well (`static`, see
`batching`). What pages hold, and whether they are found again, is the business of `memory`. There is no clock and no
randomness in here: `now_ticks` is an argument.

Invariants, checked by the state machine in `tests/engine`: no slot is shared or lost, no page is lost, and nobody
writes to a page that others hold; the queue is served in the order of its policy, and nobody is passed by who is next;
at most one running sequence has a part of its prompt; every plan advances at least one token. A request that could
never fit alone is refused, so whatever the policies choose, the last sequence they leave can go on, and the engine
cannot deadlock.

Next: `engine`, which drives this object; `composing`, what a plan is made of; `cohort`, which makes a decode step cost
O(changes); `memory`, where KV is.
"""

import dataclasses
from collections.abc import Callable, Mapping

from nanoserve.engine import policy
from nanoserve.engine.batching import StaticBatch
from nanoserve.engine.chunking import adaptive_chunk_tokens, most_chunk_tokens
from nanoserve.engine.composing import Composition
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.deadlines import Deadlines
from nanoserve.engine.log import Occupancy, RunLog
from nanoserve.engine.memory import NOTHING_KNOWN, KvFacts, KvMemory
from nanoserve.engine.pressure import Pressure
from nanoserve.engine.queue import queue_for
from nanoserve.engine.refusing import refusal
from nanoserve.engine.sequence import Sequence
from nanoserve.engine.speculating import SpeculatingCohort, cohort_for
from nanoserve.engine.types import Arrived, FinishReason, MoveKind, Plan, Request, StepResult
from nanoserve.engine.views import Views
from nanoserve.roofline.counts import StepCounts

StepsBefore = Callable[[StepCounts, int], int]
"""(counts of one decode step, now_ticks) -> how many such steps start before the next event outside."""

_COMPLETED = (FinishReason.LENGTH, FinishReason.STOP)


class Scheduler:
    """Schedules requests over a pool of KV pages. `plan` and `apply` alternate; `add`, `abort`, `expire` go between."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        num_pages: int,
        max_context_tokens: int,
        log: RunLog,
        window_tokens: int | None = None,
        facts: KvFacts = NOTHING_KNOWN,
        hands_over: bool = False,
    ):
        """Makes an empty scheduler.

        Args:
          config: budgets and limits; `config.num_pages` and `config.max_context_tokens` are already resolved into the
            arguments below.
          num_pages: pages in the pool.
          max_context_tokens: most prompt plus output tokens of one request.
          log: where decisions about requests are written.
          window_tokens: the model's sliding window, for counting attended positions.
          facts: what the config's memory needs to be told.
          hands_over: requests that want more than one token leave for another engine after it (`handed`).

        Raises:
          ConfigError: a policy that does not exist, or a fact that is missing.
        """
        self._max_context_tokens = max_context_tokens
        self.memory = KvMemory(config, num_pages, facts)
        self.pool, self._paged, self._kept = self.memory.pool, self.memory.paged, self.memory.kept
        self.cohort = cohort_for(config, window_tokens)
        self._row_tokens = config.row_tokens
        self.prefilling: list[Sequence] = []
        self.sequences: dict[int, Sequence] = {}  # every request in the engine
        self.handed: dict[int, Sequence] = {}  # requests that left for another engine, which has not fetched their KV
        self.pressure = Pressure(self)
        self.steps_planned = 0
        self._adopt(config)
        self._mixes = config.batching == "mixed"
        self.batch = StaticBatch(config) if config.batching == "static" else None
        self.log = log
        self._free_slots = list(range(config.max_seqs - 1, -1, -1))
        self._deadlines = Deadlines(config, self.sequences)
        self._hands_over = hands_over
        self._step = Composition(self.cohort, window_tokens)
        self._back: list[Sequence] = []  # decoding again after their KV came back, without a token since
        # CPython finds attributes fast in objects of up to 29 of them, and a plan asks for dozens: this one has 27.
        rare = isinstance(self.cohort, SpeculatingCohort), self._kept is not None, self.batch is not None
        self._plain = not (self.memory.caches or hands_over or any(rare))  # nothing to ask for in every plan

    def _adopt(self, config: EngineConfig) -> None:
        """Takes over policies and chunks, with a queue in which nobody waits and accounts in which nobody stands."""
        self.config = config
        order = policy.order(config.policy)
        self._steady = order.steady
        self.views = Views(config, self.cohort, self.sequences, steady=order.steady)
        self.waiting = queue_for(order, self.views)
        policy.victim(config.victim)  # that there is one is said at once
        self._admits = policy.full_prompt if self.memory.fails else policy.admission(config.admission)
        self._chunk_tokens = most_chunk_tokens(config)

    def change(self, config: EngineConfig, now_ticks: int) -> None:
        """Goes on, between two plans, under another config that differs in fields of `config.CHANGEABLE` only.

        Whoever waits is queued anew; what clients were served before does not count.
        """
        waiting = list(self.waiting)
        self._adopt(config)
        self.memory.keep_free(config.free_page_watermark)
        for sequence in waiting:
            self.waiting.put(sequence, now_ticks)

    # ---- requests in and out ----

    def add(self, request: Request, now_ticks: int, arrived: Arrived | None = None) -> bool:
        """Queues a request, or refuses one that could never run or finds the queue full.

        Args:
          request: what is asked for. now_ticks: when the engine heard of it.
          arrived: what another engine made of it before; the log has heard of it there.

        Returns:
          Whether it was queued.
        """
        if arrived is None:
            self.log.sent(request, now_ticks)
        limits = {"max_context_tokens": self._max_context_tokens, "waiting": len(self.waiting)}
        if reason := refusal(request, self.config, self.memory, **limits):
            tokens = 0 if arrived is None else arrived.generated
            self.log.finished(request.index, now_ticks, FinishReason.REFUSED, tokens, reason)
            return False
        sequence = Sequence(request, prefill_target=request.prompt_tokens)
        if arrived is not None:
            sequence.kv_tokens, sequence.generated = arrived.kv_tokens, arrived.generated
            sequence.returns = MoveKind.RECEIVE
        self.sequences[request.index] = sequence
        self.waiting.put(sequence, now_ticks)
        if not self._steady:
            self.views.queued(sequence)
        self._deadlines.add(sequence)
        return True

    def abort(self, index: int, now_ticks: int, detail: str, reason: FinishReason = FinishReason.ABORTED) -> None:
        """Ends a request wherever it is and frees what it holds."""
        sequence = self.sequences[index]
        if sequence.join:
            self.cohort.leave(sequence)
        elif self.batch is not None and sequence in self.batch:
            self.batch.drop(sequence)
        elif sequence.slot >= 0:
            self.prefilling.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._finish(sequence, now_ticks, reason, detail)

    def expire(self, now_ticks: int) -> list[int]:
        """Ends every request whose time is up, and a static batch of which nobody is left; call it before `plan`.

        Returns:
          Indices of the requests that left.
        """
        expired = []
        for sequence in self._deadlines.passed(now_ticks):
            self.abort(sequence.index, now_ticks, f"older than {self.config.timeout_s} s", FinishReason.TIMED_OUT)
            expired.append(sequence.index)
        return expired if self.batch is None else expired + self._end_batch(self.batch, now_ticks)

    def take_failed(self, now_ticks: int) -> list[int]:
        """Requests that ended while the last plan was made (`pressure`), and a static batch of which nobody is left.

        Returns:
          Indices of the requests that left, each told once.
        """
        failed, self.pressure.failed = self.pressure.failed, []
        return failed if self.batch is None else failed + self._end_batch(self.batch, now_ticks)

    def next_deadline_ticks(self) -> int | None:
        """When the next request that is still here times out."""
        return self._deadlines.next_ticks()

    def next_batch_ticks(self) -> int | None:
        """When a static batch opens that is not full; None if none is being gathered."""
        if self.batch is None or self.running_count or not self.waiting:
            return None
        return self.batch.due_ticks(self.waiting)

    def fetched(self, index: int) -> None:
        """Frees the pages of a request that was handed over: another engine has its KV, or nobody wants it."""
        self.memory.give_back(self.handed.pop(index))

    @property
    def running_count(self) -> int:
        """Sequences that hold a slot."""
        running = len(self.prefilling) + len(self.cohort.members)
        return running if self.batch is None else running + len(self.batch)

    def occupancy(self) -> Occupancy:
        """How full the engine is, the current plan's pages included."""
        pool, members = self.pool, len(self.cohort.members)
        running, kv_tokens = members + len(self.prefilling), self.cohort.kv_tokens
        for sequence in self.prefilling:
            kv_tokens += sequence.kv_tokens
        if not self._plain:
            running += 0 if self.batch is None else len(self.batch)
            kv_tokens += self._kv_tokens_besides()
        free = pool.free_count
        run = free if self._paged is not None else pool.largest_free_run
        return running, 0 if self._step.decodes else members, len(self.waiting), pool.num_pages - free, run, kv_tokens

    def _kv_tokens_besides(self) -> int:
        """KV positions held that are not those of running sequences, less those that several of these share."""
        tokens = sum(sequence.kv_tokens for sequence in self.handed.values()) - self.memory.repeated_tokens
        if self._kept is not None:
            tokens += self._kept.tokens
        return tokens if self.batch is None else tokens + self.batch.kv_tokens

    # ---- one decision ----

    def plan(self, now_ticks: int, steps_before: StepsBefore) -> Plan | None:
        """Decides the next step and its horizon.

        Args:
          now_ticks: time, for the log of admissions and preemptions.
          steps_before: says how far a plan may go.

        Returns:
          The plan, or None when no request is in the engine, a static batch is being gathered, or only what another
          engine has yet to fetch is in the way.
        """
        if not self.sequences:
            return None
        step, cohort, pressure = self._step, self.cohort, self.pressure
        if self._kept is not None:
            self._kept.expire(now_ticks)
        step.chunks = []
        if self._mixes:
            if cohort.members and self._paged is not None and not cohort.reserve(self._paged, 1):
                pressure.make_room(now_ticks)
            if self.prefilling or self.waiting:
                self._plan_chunks(now_ticks)
        elif not self._plan_apart(now_ticks):
            return None
        if not step.chunks and not cohort.members:
            return self.plan(now_ticks, steps_before) if pressure.end_hopeless(now_ticks) else None
        moves = self.memory.take_moves() if self.memory.moves else ()
        counts, horizon = step.counts(), 1
        if not step.chunks and not moves and not pressure.failed:  # who failed may send another request at once
            horizon = self._horizon(now_ticks, steps_before, counts)
            if horizon > 1:
                step.lengthen(counts, horizon)
        plan = Plan(self.steps_planned, step.kind(), horizon, counts, step.rows, 0, moves)
        if not self._plain and step.decodes:
            if isinstance(cohort, SpeculatingCohort):
                plan.counts = cohort.with_drafts(plan.counts)
            if self.batch is not None:
                plan.padding_rows = len(self.batch)
        self.steps_planned += horizon
        return plan

    def apply(self, plan: Plan, result: StepResult, start_ticks: int, end_ticks: int) -> list[int]:
        """Books what a plan did.

        Args:
          plan: the last plan made. result: what came back. start_ticks, end_ticks: when it ran.

        Returns:
          Indices of the requests that finished.
        """
        if self._back and self._step.decodes:
            self._end_stalls(start_ticks + result.ticks_after(1, plan.horizon))
        finished = self.cohort.advance(plan.horizon, result.gained) if self._step.decodes else []
        stopped = result.stopped
        if self._step.chunks:
            finished += self._apply_chunks(stopped, end_ticks)
            if not self._steady:
                self.views.prefilled(plan.counts.prefill_tokens, result.duration_ticks)
        if not finished and not stopped and self.batch is None:
            return []
        for index in stopped:
            sequence = self.sequences[index]
            if sequence.join:
                self.cohort.leave(sequence)
                finished.append(sequence)
        for sequence in finished:
            kept = stopped.get(sequence.index)
            if kept is None:
                ticks, reason = end_ticks, FinishReason.LENGTH
            else:
                if result.gained is None:  # what was gained is already cut
                    sequence.generated -= plan.horizon - kept
                ticks, reason = start_ticks + result.ticks_after(kept, plan.horizon), FinishReason.STOP
            if self.batch is None:
                self._finish(sequence, ticks, reason)
            else:
                self.batch.hold(sequence, reason)
        if self.batch is not None:
            return self._end_batch(self.batch, end_ticks)
        return [sequence.index for sequence in finished]

    # ---- parts of a decision ----

    def _plan_apart(self, now_ticks: int) -> bool:
        """Plans chunks, or decoding where there are none; False while a static batch is being gathered."""
        batch = self.batch
        if batch is not None and not self.running_count and not batch.opens(self.waiting, now_ticks):
            return False
        self._step.decodes = False
        self._plan_chunks(now_ticks)
        if self._step.chunks:
            return True
        self.pressure.make_room(now_ticks)
        if not self.cohort.members:  # all were preempted for the prompt that could not go on, or failed
            if self.prefilling or self.waiting:
                self._plan_chunks(now_ticks)
            return True
        self._step.decodes = True
        if batch is not None:
            batch.places = 0
        return True

    def _plan_chunks(self, now_ticks: int) -> None:
        waiting, decoding = self.waiting, len(self.cohort.members)
        room = self.config.max_step_tokens - (decoding * self._row_tokens if self._step.decodes else 0)
        budget = min(room, self._chunk_tokens)
        if self.config.chunking == "adaptive":
            prompts = len(self.prefilling) + len(waiting)
            budget = min(budget, adaptive_chunk_tokens(self.config, decoding, prompts))
        spare = room - budget
        for sequence in self.prefilling:
            budget -= self._grant(sequence, budget)
        while waiting and budget > 0:
            head = waiting.head(now_ticks)
            if not self.can_admit(head):
                if self.pressure.ends(head, now_ticks):
                    continue
                break
            if head.returns and budget + spare < self._row_tokens:
                break
            self._admit(head, now_ticks)
            budget -= self._row_tokens if head.join else self._grant(head, budget)

    def _grant(self, sequence: Sequence, budget: int) -> int:
        """Plans a chunk of at most `budget` tokens for one sequence, as far as pages go; returns its tokens."""
        past = sequence.kv_tokens
        tokens = self.memory.grow(sequence, min(sequence.prefill_target - past, budget))
        if tokens:
            self._step.chunks.append((sequence, past, tokens))
        return tokens

    def has_place(self) -> bool:
        """Whether somebody may be admitted, memory apart."""
        return bool(self._free_slots) and (self.batch is None or self.batch.places > 0)

    def can_admit(self, sequence: Sequence) -> bool:
        """Whether a sequence may be admitted; kept sessions are dropped for it if that is what it takes."""
        if not self._free_slots or (self.batch is not None and not self.batch.places):
            return False
        memory = self.memory
        while True:
            need, free = memory.pages_to_start(sequence), self.pool.largest_free_run
            if need <= free and (
                self._paged is None or self._admits(need, free, memory.watermark_pages) or not self.running_count
            ):
                return True
            if not memory.make_room(sequence):
                return False

    def _admit(self, sequence: Sequence, now_ticks: int) -> None:
        self.waiting.remove(sequence)
        sequence.slot = self._free_slots.pop()
        cached_tokens = self.memory.start(sequence)
        if self.batch is not None:
            self.batch.places -= 1
        if not self._steady:
            self.views.admitted(sequence)
        if cached_tokens is not None:
            self.log.looked_up(sequence.index, sequence.prefill_target, cached_tokens)
        self.log.admitted(sequence.index, now_ticks)
        if sequence.kv_tokens < sequence.prefill_target:
            self.prefilling.append(sequence)
        else:
            self._rejoin(sequence)

    def _rejoin(self, sequence: Sequence) -> None:
        """A sequence whose KV came back decodes on, in this very step if the others do."""
        self.cohort.join(sequence)
        self._back.append(sequence)
        if self._paged is not None:
            self.cohort.reserve_for(self._paged, sequence)
            if self._step.decodes:
                self.cohort.reserve(self._paged, 1)

    def _horizon(self, now_ticks: int, steps_before: StepsBefore, counts: StepCounts) -> int:
        """How many steps of these counts nothing can change."""
        steps = min(self.cohort.steps_to_change(), self.config.horizon_limit)
        if not (self._mixes and self._steady) and self.waiting and self._may_admit_next(now_ticks):
            return 1
        if steps > 1:
            if self.batch:  # priced with its padding, so that no arrival is passed
                rows = len(self.batch)
                counts = dataclasses.replace(
                    counts, decode_seqs=counts.decode_seqs + rows, sampled=counts.sampled + rows
                )
            steps = min(steps, steps_before(counts, now_ticks))
            if self._paged is not None:
                steps = self.cohort.reserve(self._paged, steps)
        return steps

    def _may_admit_next(self, now_ticks: int) -> bool:
        """Whether the next plan may admit somebody though this one does not: then nothing is sure beyond one step."""
        if not self._steady:
            return bool(self._free_slots)  # another may be next by then
        return self.can_admit(self.waiting.head(now_ticks))  # a preemption made room after chunks were planned

    # ---- parts of booking ----

    def _apply_chunks(self, stopped: Mapping[int, int], end_ticks: int) -> list[Sequence]:
        """Books the chunks that ran; returns the sequences that their first token finished."""
        finished = []
        for sequence, past, new in self._step.chunks:
            sequence.kv_tokens = past + new
            if self.memory.caches:
                self.memory.learn(sequence)
            if sequence.kv_tokens < sequence.prefill_target:
                continue
            self.prefilling.remove(sequence)
            self._first_token(sequence, end_ticks)
            if sequence.generated == sequence.request.output_tokens or sequence.index in stopped:
                finished.append(sequence)
            elif self._hands_over:
                self._hand_over(sequence, end_ticks)
            else:
                self.cohort.join(sequence)
        return finished

    def _hand_over(self, sequence: Sequence, ticks: int) -> None:
        """Lets a sequence go to another engine; its pages stay until they are fetched."""
        self._free_slot(sequence)
        if not self._steady:
            self.views.left(sequence)
        del self.sequences[sequence.index]
        self.handed[sequence.index] = sequence
        self.log.handed_over(sequence.index, ticks)

    def _first_token(self, sequence: Sequence, end_ticks: int) -> None:
        if sequence.generated == 0:
            self.log.first_token(sequence.index, end_ticks)
        else:
            sequence.max_stall_ticks = max(sequence.max_stall_ticks, end_ticks - sequence.last_token_ticks)
        sequence.generated += 1

    def _end_stalls(self, ticks: int) -> None:
        """Books how long those who decode again had no token; `ticks` is when they have one."""
        for sequence in self._back:
            if sequence.join and sequence.preemptions:
                sequence.max_stall_ticks = max(sequence.max_stall_ticks, ticks - sequence.last_token_ticks)
        self._back = []

    def _end_batch(self, batch: StaticBatch, ticks: int) -> list[int]:
        """Lets all members of a static batch go once nobody in it runs any more; returns who left."""
        if self.prefilling or self.cohort.members:
            return []
        ended = batch.end()
        for sequence, reason in ended:
            self._finish(sequence, ticks, reason)
        return [sequence.index for sequence, _ in ended]

    def _finish(self, sequence: Sequence, ticks: int, reason: FinishReason, detail: str = "") -> None:
        self.memory.retire(sequence, ticks, completed=reason in _COMPLETED)
        self._free_slot(sequence)
        if not self._steady:
            self.views.left(sequence)
        del self.sequences[sequence.index]
        self.log.held(sequence.index, sequence.most_pages, sequence.written_tokens)
        self.log.finished(
            sequence.index, ticks, reason, sequence.generated, detail, sequence.preemptions, sequence.max_stall_ticks
        )

    def vacate(self, sequence: Sequence) -> None:
        """Takes the slot and the pages of a sequence that is preempted."""
        self.memory.give_back(sequence)
        self._free_slot(sequence)

    def _free_slot(self, sequence: Sequence) -> None:
        if sequence.slot >= 0:
            self._free_slots.append(sequence.slot)
            sequence.slot = -1
