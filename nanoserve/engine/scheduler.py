"""The scheduler: decides what each step runs, and for how many steps nothing can change.

By default batching is continuous and mixed. One step holds every decoding sequence (one token each) and, under the
token budget, prompt chunks of sequences that are still prefilling, oldest first; then the head of the queue is admitted
while slots, pages and budget last. When a decoding sequence cannot get its next page, the youngest sequence is
preempted: it loses its pages and goes back to the queue to be recomputed. Who is next, who gives way and who may come
in are functions of `policy`; `EngineConfig.batching` keeps chunks and decoding apart (`prefill_first`), or gathers
batches as well (`static`, see `batching`). There is no clock and no randomness in here: `now_ticks` is an argument.

Invariants, checked by the state machine in `tests/engine`: slots and pages are never shared or lost; the queue is
served in the order of its policy, and nobody is passed by who is next; at most one sequence has a part of its prompt;
every plan advances at least one token. A request that could never fit alone is refused, so whatever the policies
choose, the last sequence they leave can go on, and the engine cannot deadlock.

Next: `engine`, which drives this object; `cohort`, which makes a decode step cost O(changes).
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping

from nanoserve.engine import policy
from nanoserve.engine.batching import StaticBatch
from nanoserve.engine.chunking import adaptive_chunk_tokens, most_chunk_tokens
from nanoserve.engine.cohort import DecodeCohort
from nanoserve.engine.log import Occupancy, RunLog
from nanoserve.engine.pages import PagePool
from nanoserve.engine.queue import queue_for
from nanoserve.engine.runs import RunPool
from nanoserve.engine.sequence import Sequence, pages_for
from nanoserve.engine.types import EngineConfig, FinishReason, Kind, Plan, Request, Row, StepResult, to_ticks
from nanoserve.engine.views import Views
from nanoserve.roofline.counts import StepCounts, causal_pairs, window_kv_tokens, window_pairs
from nanoserve.specs.errors import ConfigError

StepsBefore = Callable[[StepCounts], int]
_Chunk = tuple[Sequence, int, int]  # (sequence, past tokens, new tokens)


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
    ):
        """Makes an empty scheduler.

        Args:
          config: budgets and limits; `config.num_pages` and `config.max_context_tokens` are already resolved into the
            arguments below.
          num_pages: pages in the pool.
          max_context_tokens: most prompt plus output tokens of one request.
          log: where decisions about requests are written.
          window_tokens: the model's sliding window, for counting attended positions.

        Raises:
          ConfigError: a policy that does not exist.
        """
        self.config = config
        self.max_context_tokens = max_context_tokens
        self.window_tokens = window_tokens
        self._paged = (
            PagePool(num_pages) if config.allocator == "paged" else None
        )  # where sequences get page after page
        self.pool: PagePool | RunPool = self._paged or RunPool(num_pages)
        self.cohort = DecodeCohort(config.page_tokens, window_tokens)
        self.prefilling: list[Sequence] = []
        self.sequences: dict[int, Sequence] = {}  # every request in the engine
        self.steps_planned = 0
        order = policy.order(config.policy)
        self._steady = order.steady
        self._views = Views(config, self.cohort, self.sequences, steady=order.steady)
        self.waiting = queue_for(order, self._views)
        self._choose_victim = policy.victim(config.victim)
        self._admits = policy.admission(config.admission)
        self._mixes = config.batching == "mixed"
        self._chunk_tokens = most_chunk_tokens(config)
        self._adapts = config.chunking == "adaptive"
        self._batch = StaticBatch(config) if config.batching == "static" else None
        self._log = log
        self._free_slots = list(range(config.max_seqs - 1, -1, -1))
        self._watermark_pages = int(config.free_page_watermark * num_pages)
        self._deadlines: deque[tuple[int, Sequence]] = deque()
        self._timeout_ticks = None if config.timeout_s is None else to_ticks(config.timeout_s)
        self._chunks: list[_Chunk] = []
        self._decodes = True  # the cohort takes part in the current plan

    # ---- requests in and out ----

    def add(self, request: Request, now_ticks: int) -> bool:
        """Queues a request, or refuses one that could never run or finds the queue full.

        Returns:
          Whether it was queued.
        """
        self._log.sent(request, now_ticks)
        if reason := self._refusal(request):
            self._log.finished(request.index, now_ticks, FinishReason.REFUSED, 0, reason)
            return False
        sequence = Sequence(request, prefill_target=request.prompt_tokens)
        self.sequences[request.index] = sequence
        self.waiting.put(sequence, now_ticks)
        if not self._steady:
            self._views.queued(sequence)
        if self._timeout_ticks is not None:
            self._deadlines.append((request.arrival_ticks + self._timeout_ticks, sequence))
        return True

    def abort(self, index: int, now_ticks: int, detail: str, reason: FinishReason = FinishReason.ABORTED) -> None:
        """Ends a request wherever it is and frees what it holds."""
        sequence = self.sequences[index]
        if sequence.join:
            self.cohort.leave(sequence)
        elif self._batch is not None and sequence in self._batch:
            self._batch.drop(sequence)
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
        while self._deadlines and self._deadlines[0][0] <= now_ticks:
            _, sequence = self._deadlines.popleft()
            if self.sequences.get(sequence.index) is sequence:
                self.abort(sequence.index, now_ticks, f"older than {self.config.timeout_s} s", FinishReason.TIMED_OUT)
                expired.append(sequence.index)
        return expired if self._batch is None else expired + self._end_batch(self._batch, now_ticks)

    def next_deadline_ticks(self) -> int | None:
        """When the next request that is still here times out."""
        while self._deadlines and self.sequences.get(self._deadlines[0][1].index) is not self._deadlines[0][1]:
            self._deadlines.popleft()
        return self._deadlines[0][0] if self._deadlines else None

    def next_batch_ticks(self) -> int | None:
        """When a static batch opens that is not full; None if none is being gathered."""
        if self._batch is None or self.running_count or not self.waiting:
            return None
        return self._batch.due_ticks(self.waiting)

    @property
    def running_count(self) -> int:
        """Sequences that hold a slot."""
        running = len(self.prefilling) + len(self.cohort.members)
        return running if self._batch is None else running + len(self._batch)

    def occupancy(self) -> Occupancy:
        """How full the engine is, the current plan's pages included."""
        pool, members = self.pool, len(self.cohort.members)
        running, kv_tokens = members + len(self.prefilling), self.cohort.kv_tokens
        for sequence in self.prefilling:
            kv_tokens += sequence.kv_tokens
        if self._batch is not None:
            running += len(self._batch)
            kv_tokens += self._batch.kv_tokens
        free = pool.free_count
        run = free if self._paged is not None else pool.largest_free_run
        return running, 0 if self._decodes else members, len(self.waiting), pool.num_pages - free, run, kv_tokens

    # ---- one decision ----

    def plan(self, now_ticks: int, steps_before: StepsBefore) -> Plan | None:
        """Decides the next step and its horizon.

        Args:
          now_ticks: time, for the log of admissions and preemptions.
          steps_before: given the counts of one decode step, how many such steps start before the next event outside.

        Returns:
          The plan, or None when no request is in the engine, or a static batch is being gathered.
        """
        if not self.sequences:
            return None
        self._chunks = []
        if self._mixes:
            if self.cohort.members and self._paged is not None and not self.cohort.reserve(self._paged, 1):
                self._make_room(now_ticks)
            if self.prefilling or self.waiting:
                self._plan_chunks(now_ticks)
        elif not self._plan_apart(now_ticks):
            return None
        if self._chunks:
            horizon, kind = 1, Kind.MIXED if self._decodes and self.cohort.members else Kind.PREFILL
        else:
            horizon, kind = self._horizon(now_ticks, steps_before), Kind.DECODE
        plan = Plan(self.steps_planned, kind, horizon, self._counts(horizon), self._rows)
        if self._batch is not None and self._decodes:
            plan.padding_rows = len(self._batch)
        self.steps_planned += horizon
        return plan

    def apply(self, plan: Plan, result: StepResult, start_ticks: int, end_ticks: int) -> list[int]:
        """Books what a plan did.

        Args:
          plan: the last plan made. result: what came back. start_ticks, end_ticks: when it ran.

        Returns:
          Indices of the requests that finished.
        """
        finished, stopped = self.cohort.advance(plan.horizon) if self._decodes else [], result.stopped
        if self._chunks:
            finished += self._apply_chunks(stopped, end_ticks)
            if not self._steady:
                self._views.prefilled(plan.counts.prefill_tokens, result.duration_ticks)
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
                sequence.generated -= plan.horizon - kept
                ticks, reason = start_ticks + result.ticks_after(kept, plan.horizon), FinishReason.STOP
            if self._batch is None:
                self._finish(sequence, ticks, reason)
            else:
                self._batch.hold(sequence, reason)
        if self._batch is not None:
            return self._end_batch(self._batch, end_ticks)
        return [sequence.index for sequence in finished]

    # ---- parts of a decision ----

    def _refusal(self, request: Request) -> str:
        total = request.prompt_tokens + request.output_tokens
        if total > self.max_context_tokens:
            return (
                f"prompt {request.prompt_tokens} + output {request.output_tokens} = {total} tokens exceed the context "
                f"of {self.max_context_tokens}"
            )
        pages = self._worst_case_pages(request)
        if pages > self.pool.num_pages:
            size = self.config.page_tokens
            return f"{total} tokens need {pages} pages of {size}; the whole pool has {self.pool.num_pages}"
        limit = self.config.queue_limit
        if limit is not None and len(self.waiting) >= limit:
            return f"the queue is full: {len(self.waiting)} requests wait, and Engine.queue_limit is {limit}"
        return ""

    def _plan_apart(self, now_ticks: int) -> bool:
        """Plans chunks, or decoding where there are none; False while a static batch is being gathered."""
        batch = self._batch
        if batch is not None and not self.running_count and not batch.opens(self.waiting, now_ticks):
            return False
        self._decodes = False
        self._plan_chunks(now_ticks)
        if self._chunks:
            return True
        self._make_room(now_ticks)
        if not self.cohort.members:  # all were preempted for the prompt that could not go on
            self._plan_chunks(now_ticks)
            return True
        self._decodes = True
        if batch is not None:
            batch.places = 0
        return True

    def _make_room(self, now_ticks: int) -> None:
        """Sees to it that every decoding sequence has the pages of its next step, at the cost of whoever gives way."""
        cohort, batch = self.cohort, self._batch
        while cohort.members and self._paged is not None and not cohort.reserve(self._paged, 1):
            if batch is None or not batch.give_up_pages(self.pool):
                self._preempt(self._victim(now_ticks), now_ticks)

    def _victim(self, now_ticks: int) -> Sequence:
        if self._choose_victim is policy.youngest:
            return self.prefilling[-1] if self.prefilling else self.cohort.youngest()
        views = self._views((*self.cohort, *self.prefilling), now_ticks)
        chosen = self._choose_victim(views, now_ticks)
        if all(view.index != chosen for view in views):
            raise ConfigError(f"Engine.victim = '{self.config.victim}' chose request {chosen}, which does not run")
        return self.sequences[chosen]

    def _plan_chunks(self, now_ticks: int) -> None:
        waiting, decoding = self.waiting, len(self.cohort.members)
        budget = min(self.config.max_step_tokens - (decoding if self._decodes else 0), self._chunk_tokens)
        if self._adapts:
            prompts = len(self.prefilling) + len(waiting)
            budget = min(budget, adaptive_chunk_tokens(self.config, decoding, prompts))
        for sequence in self.prefilling:
            budget -= self._grant(sequence, budget)
        while waiting and budget > 0:
            head = waiting.head(now_ticks)
            if not self._can_admit(head):
                break
            self._admit(head, now_ticks)
            budget -= self._grant(head, budget)

    def _grant(self, sequence: Sequence, budget: int) -> int:
        """Plans a chunk of at most `budget` tokens for one sequence, as far as pages go; returns its tokens."""
        past, page_tokens = sequence.kv_tokens, self.config.page_tokens
        tokens = min(sequence.prefill_target - past, budget)
        missing = pages_for(past + tokens, page_tokens) - len(sequence.pages)
        if missing > self.pool.free_count:
            missing = self.pool.free_count
            tokens = (len(sequence.pages) + missing) * page_tokens - past
        if tokens <= 0:
            return 0
        sequence.pages += self.pool.alloc(missing)
        self._chunks.append((sequence, past, tokens))
        return tokens

    def _can_admit(self, sequence: Sequence) -> bool:
        if not self._free_slots or (self._batch is not None and not self._batch.places):
            return False
        if self._paged is None:
            return self._worst_case_pages(sequence.request) <= self.pool.largest_free_run
        need, free = pages_for(sequence.prefill_target, self.config.page_tokens), self.pool.free_count
        return need <= free and (self._admits(need, free, self._watermark_pages) or not self.running_count)

    def _admit(self, sequence: Sequence, now_ticks: int) -> None:
        self.waiting.remove(sequence)
        sequence.slot = self._free_slots.pop()
        if self._paged is None:
            sequence.pages = self.pool.alloc(self._worst_case_pages(sequence.request))
        if self._batch is not None:
            self._batch.places -= 1
        self.prefilling.append(sequence)
        if not self._steady:
            self._views.admitted(sequence)
        self._log.admitted(sequence.index, now_ticks)

    def _worst_case_pages(self, request: Request) -> int:
        """Pages of a prompt and all its output; the last token's KV is never written."""
        return pages_for(request.prompt_tokens + request.output_tokens - 1, self.config.page_tokens)

    def _preempt(self, victim: Sequence, now_ticks: int) -> None:
        if victim.join:
            self.cohort.leave(victim)
            victim.last_token_ticks = now_ticks
        else:
            self.prefilling.remove(victim)
        self._vacate(victim)
        victim.kv_tokens = 0
        victim.prefill_target = victim.request.prompt_tokens + victim.generated
        victim.preemptions += 1
        self.waiting.put(victim, now_ticks)
        self._log.preempted(victim.index, now_ticks)

    def _horizon(self, now_ticks: int, steps_before: StepsBefore) -> int:
        steps = min(self.cohort.steps_to_change(), self.config.max_horizon_steps)
        if not (self._mixes and self._steady) and self.waiting and self._may_admit_next(now_ticks):
            return 1
        if steps > 1:
            counts = self._counts(1)
            if self._batch:  # priced with its padding, so that no arrival is passed
                rows = len(self._batch)
                counts = dataclasses.replace(
                    counts, decode_seqs=counts.decode_seqs + rows, sampled=counts.sampled + rows
                )
            steps = min(steps, steps_before(counts))
            if self._paged is not None:
                steps = self.cohort.reserve(self._paged, steps)
        return steps

    def _may_admit_next(self, now_ticks: int) -> bool:
        """Whether the next plan may admit somebody though this one does not: then nothing is sure beyond one step."""
        if not self._steady:
            return bool(self._free_slots)  # another may be next by then
        return self._can_admit(self.waiting.head(now_ticks))  # a preemption made room after chunks were planned

    def _counts(self, steps: int) -> StepCounts:
        if self._decodes:
            rows = len(self.cohort.members)
            kv_tokens, window_tokens = self.cohort.attended(steps)
        else:
            rows = kv_tokens = window_tokens = 0
        if not self._chunks:
            return StepCounts(steps, rows, kv_tokens, window_tokens, 0, 0, 0, 0, 0, 0, steps * rows)
        pairs = window = kv = window_kv = tokens = sampled = 0
        limit = self.window_tokens
        for sequence, past, new in self._chunks:
            tokens += new
            pairs += causal_pairs(past, new)
            kv += past + new
            sampled += past + new == sequence.prefill_target
            if limit is not None:
                window += window_pairs(past, new, limit)
                window_kv += window_kv_tokens(past, new, limit)
        if limit is None:
            window, window_kv = pairs, kv
        return StepCounts(
            steps,
            rows,
            kv_tokens,
            window_tokens,
            len(self._chunks),
            tokens,
            pairs,
            window,
            kv,
            window_kv,
            rows + sampled,
        )

    def _rows(self) -> tuple[Row, ...]:
        cohort = self.cohort
        members = cohort if self._decodes else ()
        decode = [Row(s.index, s.slot, cohort.kv_of(s), 1, True, s.pages, cohort.generated_of(s)) for s in members]
        chunks = [
            Row(s.index, s.slot, past, new, past + new == s.prefill_target, s.pages, s.generated)
            for s, past, new in self._chunks
        ]
        return (*decode, *chunks)

    # ---- parts of booking ----

    def _apply_chunks(self, stopped: Mapping[int, int], end_ticks: int) -> list[Sequence]:
        """Books the chunks that ran; returns the sequences that their first token finished."""
        finished = []
        for sequence, past, new in self._chunks:
            sequence.kv_tokens = past + new
            if sequence.kv_tokens < sequence.prefill_target:
                continue
            self.prefilling.remove(sequence)
            self._first_token(sequence, end_ticks)
            if sequence.generated == sequence.request.output_tokens or sequence.index in stopped:
                finished.append(sequence)
            else:
                self.cohort.join(sequence)
        return finished

    def _first_token(self, sequence: Sequence, end_ticks: int) -> None:
        if sequence.generated == 0:
            self._log.first_token(sequence.index, end_ticks)
        else:
            sequence.max_stall_ticks = max(sequence.max_stall_ticks, end_ticks - sequence.last_token_ticks)
        sequence.generated += 1

    def _end_batch(self, batch: StaticBatch, ticks: int) -> list[int]:
        """Lets all members of a static batch go once nobody in it runs any more; returns who left."""
        if self.prefilling or self.cohort.members:
            return []
        ended = batch.end()
        for sequence, reason in ended:
            self._finish(sequence, ticks, reason)
        return [sequence.index for sequence, _ in ended]

    def _finish(self, sequence: Sequence, ticks: int, reason: FinishReason, detail: str = "") -> None:
        self._vacate(sequence)
        if not self._steady:
            self._views.left(sequence)
        del self.sequences[sequence.index]
        self._log.finished(
            sequence.index, ticks, reason, sequence.generated, detail, sequence.preemptions, sequence.max_stall_ticks
        )

    def _vacate(self, sequence: Sequence) -> None:
        self.pool.free(sequence.pages)
        sequence.pages = []
        if sequence.slot >= 0:
            self._free_slots.append(sequence.slot)
            sequence.slot = -1
