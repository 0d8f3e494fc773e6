"""Continuous batching with mixed steps: decides what each step runs, and for how many steps nothing can change.

One step holds every decoding sequence (one token each) and, under the token budget, prompt chunks of sequences that are
still prefilling, oldest first; then the head of the queue is admitted while slots, pages and budget last. When a
decoding sequence cannot get its next page, the youngest sequence is preempted: it loses its pages and goes back to the
head of the queue to be recomputed. There is no clock and no randomness in here: `now_ticks` is an argument.

Invariants, checked by the state machine in `tests/engine`: slots and pages are never shared or lost; the queue is first
come, first served; every plan advances at least one token. Because a request that could never fit alone is refused, the
oldest sequence can always go on, so the engine cannot deadlock.

Next: `engine`, which drives this object; `cohort`, which makes a decode step cost O(changes).
"""

from collections import deque
from collections.abc import Callable, Mapping

from nanoserve.engine.cohort import DecodeCohort
from nanoserve.engine.log import Occupancy, RunLog
from nanoserve.engine.pages import PagePool
from nanoserve.engine.sequence import Sequence, pages_for
from nanoserve.engine.types import EngineConfig, FinishReason, Kind, Plan, Request, Row, StepResult, to_ticks
from nanoserve.roofline.counts import StepCounts, causal_pairs, window_kv_tokens, window_pairs

StepsBefore = Callable[[StepCounts], int]
_Chunk = tuple[Sequence, int, int]  # (sequence, past tokens, new tokens)


class Scheduler:
    """First come, first served scheduling over paged KV. `plan` and `apply` alternate; `add` and `abort` go between."""

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
        """
        self.config = config
        self.max_context_tokens = max_context_tokens
        self.window_tokens = window_tokens
        self.pool = PagePool(num_pages)
        self.cohort = DecodeCohort(config.page_tokens, window_tokens)
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.sequences: dict[int, Sequence] = {}  # every request in the engine
        self.steps_planned = 0
        self._log = log
        self._free_slots = list(range(config.max_seqs - 1, -1, -1))
        self._watermark_pages = int(config.free_page_watermark * num_pages)
        self._deadlines: deque[tuple[int, Sequence]] = deque()
        self._timeout_ticks = None if config.timeout_s is None else to_ticks(config.timeout_s)
        self._chunks: list[_Chunk] = []

    # ---- requests in and out ----

    def add(self, request: Request, now_ticks: int) -> bool:
        """Queues a request, or refuses one that could never run.

        Returns:
          Whether it was queued.
        """
        self._log.sent(request, now_ticks)
        if reason := self._refusal(request):
            self._log.finished(request.index, now_ticks, FinishReason.REFUSED, 0, reason)
            return False
        sequence = Sequence(request, prefill_target=request.prompt_tokens)
        self.sequences[request.index] = sequence
        self.waiting.append(sequence)
        if self._timeout_ticks is not None:
            self._deadlines.append((request.arrival_ticks + self._timeout_ticks, sequence))
        return True

    def abort(self, index: int, now_ticks: int, detail: str, reason: FinishReason = FinishReason.ABORTED) -> None:
        """Ends a request wherever it is and frees what it holds."""
        sequence = self.sequences[index]
        if sequence.join:
            self.cohort.leave(sequence)
        elif sequence.slot >= 0:
            self.prefilling.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._finish(sequence, now_ticks, reason, detail)

    def expire(self, now_ticks: int) -> list[int]:
        """Ends every request whose time is up and returns their indices."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now_ticks:
            _, sequence = self._deadlines.popleft()
            if self.sequences.get(sequence.index) is sequence:
                self.abort(sequence.index, now_ticks, f"older than {self.config.timeout_s} s", FinishReason.TIMED_OUT)
                expired.append(sequence.index)
        return expired

    def next_deadline_ticks(self) -> int | None:
        """When the next request that is still here times out."""
        while self._deadlines and self.sequences.get(self._deadlines[0][1].index) is not self._deadlines[0][1]:
            self._deadlines.popleft()
        return self._deadlines[0][0] if self._deadlines else None

    @property
    def running_count(self) -> int:
        """Sequences that hold a slot."""
        return len(self.prefilling) + len(self.cohort.members)

    def occupancy(self) -> Occupancy:
        """How full the engine is now."""
        kv_tokens = self.cohort.kv_tokens
        for sequence in self.prefilling:
            kv_tokens += sequence.kv_tokens
        return self.running_count, len(self.waiting), self.pool.used_count, kv_tokens

    # ---- one decision ----

    def plan(self, now_ticks: int, steps_before: StepsBefore) -> Plan | None:
        """Decides the next step and its horizon.

        Args:
          now_ticks: time, for the log of admissions and preemptions.
          steps_before: given the counts of one decode step, how many such steps start before the next event outside.

        Returns:
          The plan, or None when no request is in the engine.
        """
        if not self.sequences:
            return None
        cohort = self.cohort
        while cohort.members and not cohort.reserve(self.pool, 1):
            self._preempt(self.prefilling[-1] if self.prefilling else cohort.youngest(), now_ticks)
        self._chunks = []
        if self.prefilling or self.waiting:
            self._plan_chunks(now_ticks)
        if self._chunks:
            horizon, kind = 1, Kind.MIXED if cohort.members else Kind.PREFILL
        else:
            horizon, kind = self._horizon(steps_before), Kind.DECODE
        plan = Plan(self.steps_planned, kind, horizon, self._counts(horizon), self._rows)
        self.steps_planned += horizon
        return plan

    def apply(self, plan: Plan, result: StepResult, start_ticks: int, end_ticks: int) -> list[int]:
        """Books what a plan did.

        Args:
          plan: the last plan made. result: what came back. start_ticks, end_ticks: when it ran.

        Returns:
          Indices of the requests that finished.
        """
        finished, stopped = self.cohort.advance(plan.horizon), result.stopped
        if self._chunks:
            finished += self._apply_chunks(stopped, end_ticks)
        for index in stopped:
            sequence = self.sequences[index]
            if sequence.join:
                self.cohort.leave(sequence)
                finished.append(sequence)
        for sequence in finished:
            kept = stopped.get(sequence.index)
            if kept is None:
                self._finish(sequence, end_ticks, FinishReason.LENGTH)
            else:
                sequence.generated -= plan.horizon - kept
                self._finish(sequence, start_ticks + result.ticks_after(kept, plan.horizon), FinishReason.STOP)
        return [sequence.index for sequence in finished]

    # ---- parts of a decision ----

    def _refusal(self, request: Request) -> str:
        total = request.prompt_tokens + request.output_tokens
        if total > self.max_context_tokens:
            return (
                f"prompt {request.prompt_tokens} + output {request.output_tokens} = {total} tokens exceed the context "
                f"of {self.max_context_tokens}"
            )
        pages = pages_for(total - 1, self.config.page_tokens)  # the last token's KV is never written
        if pages > self.pool.num_pages:
            size = self.config.page_tokens
            return f"{total} tokens need {pages} pages of {size}; the whole pool has {self.pool.num_pages}"
        return ""

    def _plan_chunks(self, now_ticks: int) -> None:
        config = self.config
        budget = config.max_step_tokens - len(self.cohort.members)
        if config.prefill_chunk_tokens is not None:
            budget = min(budget, config.prefill_chunk_tokens)
        for sequence in self.prefilling:
            budget -= self._grant(sequence, budget)
        while self.waiting and budget > 0 and self._can_admit(self.waiting[0]):
            budget -= self._grant(self._admit(now_ticks), budget)

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
        if not self._free_slots:
            return False
        reserve = self._watermark_pages if self.running_count else 0
        return pages_for(sequence.prefill_target, self.config.page_tokens) + reserve <= self.pool.free_count

    def _admit(self, now_ticks: int) -> Sequence:
        sequence = self.waiting.popleft()
        sequence.slot = self._free_slots.pop()
        self.prefilling.append(sequence)
        self._log.admitted(sequence.index, now_ticks)
        return sequence

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
        self.waiting.appendleft(victim)
        self._log.preempted(victim.index, now_ticks)

    def _horizon(self, steps_before: StepsBefore) -> int:
        steps = min(self.cohort.steps_to_change(), self.config.max_horizon_steps)
        if steps > 1:
            steps = min(steps, steps_before(self._counts(1)))
            steps = self.cohort.reserve(self.pool, steps)
        return steps

    def _counts(self, steps: int) -> StepCounts:
        rows = len(self.cohort.members)
        kv_tokens, window_tokens = self.cohort.attended(steps)
        if not self._chunks:
            return StepCounts(steps, rows, kv_tokens, window_tokens, sampled=steps * rows)
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
        decode = [Row(s.index, s.slot, cohort.kv_of(s), 1, True, s.pages, cohort.generated_of(s)) for s in cohort]
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

    def _finish(self, sequence: Sequence, ticks: int, reason: FinishReason, detail: str = "") -> None:
        self._vacate(sequence)
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
