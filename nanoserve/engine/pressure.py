"""What happens when pages run out: kept sessions are dropped, running sequences give way, or requests end.

By default nobody loses an answer. The session that was kept for longest goes first, then the pages of static batches'
members that are done, then the victim that `policy` chooses, which waits to come back. With `when_full = 'fail'` there
is none of that: whoever joined last of those that need a page ends (`failing`). Where pages leak (`faults`), a request
may be left that can never go on though nobody else runs; it ends, too, or the engine would stand still.

Nothing here is asked while pages suffice. Next: `scheduler`, which asks; `memory`, which drops and moves KV.
"""

from typing import Protocol

from nanoserve.engine import policy
from nanoserve.engine.batching import StaticBatch
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.failing import evidence
from nanoserve.engine.log import RunLog
from nanoserve.engine.memory import KvMemory
from nanoserve.engine.queue import Queue
from nanoserve.engine.sequence import Sequence
from nanoserve.engine.speculating import Cohort
from nanoserve.engine.types import FinishReason
from nanoserve.engine.views import Views
from nanoserve.specs.errors import ConfigError


class Crowd(Protocol):
    """Who is in an engine, and what can be done about it: a `Scheduler`, whose attributes these are."""

    config: EngineConfig
    memory: KvMemory
    cohort: Cohort
    prefilling: list[Sequence]
    sequences: dict[int, Sequence]
    handed: dict[int, Sequence]
    waiting: Queue
    batch: StaticBatch | None
    views: Views
    log: RunLog

    def has_place(self) -> bool:
        """Whether somebody may be admitted, memory apart."""
        ...

    def can_admit(self, sequence: Sequence, /) -> bool:
        """Whether a sequence may be admitted."""
        ...

    def abort(self, index: int, now_ticks: int, detail: str, reason: FinishReason, /) -> None:
        """Ends a request wherever it is."""
        ...

    def vacate(self, sequence: Sequence, /) -> None:
        """Takes the slot and the pages of a sequence."""
        ...


class Pressure:
    """Decides who gives way."""

    def __init__(self, crowd: Crowd):
        """Looks after the engine of `crowd`, which need not be complete yet."""
        self._crowd = crowd
        self.failed: list[int] = []  # requests that ended in the plan that is being made

    def make_room(self, now_ticks: int) -> None:
        """Sees to it that every decoding sequence has the pages of its next step, at the cost of whoever gives way."""
        crowd, memory = self._crowd, self._crowd.memory
        cohort, batch, pages = crowd.cohort, crowd.batch, memory.paged
        while cohort.members and pages is not None and not cohort.reserve(pages, 1):
            if memory.fails:
                self._fail(*cohort.short(), now_ticks)
            elif memory.make_room() or (batch is not None and batch.give_up_pages(memory)):
                continue
            elif memory.leaking and len(cohort.members) + len(crowd.prefilling) == 1:  # else it fits alone
                self._fail(*cohort.short(), now_ticks)
            else:
                self._preempt(self._victim(now_ticks), now_ticks)

    def ends(self, head: Sequence, now_ticks: int) -> bool:
        """Ends the head of the queue, for which there are no pages, if nobody waits for those; False if it waits."""
        if not self._crowd.memory.fails or not self._crowd.has_place():
            return False
        self._fail(head, self._crowd.memory.pages_to_start(head), now_ticks)
        return True

    def end_hopeless(self, now_ticks: int) -> bool:
        """Ends all who cannot go on though nobody else runs, because too many pages leaked; False if nobody has."""
        crowd, memory, ended = self._crowd, self._crowd.memory, len(self.failed)
        if memory.leaking is None:
            return False
        while crowd.prefilling or (crowd.waiting and crowd.has_place()):
            hopeless = crowd.prefilling[0] if crowd.prefilling else crowd.waiting.head(now_ticks)
            if hopeless.slot < 0 and crowd.can_admit(hopeless):
                break
            self._fail(hopeless, memory.pages_to_start(hopeless), now_ticks)
        return len(self.failed) > ended

    def _fail(self, sequence: Sequence, pages: int, now_ticks: int) -> None:
        """Ends a request that asks for so many pages, which cannot be had."""
        crowd = self._crowd
        detail = evidence(pages, crowd.memory, (*crowd.sequences.values(), *crowd.handed.values()))
        crowd.abort(sequence.index, now_ticks, detail, FinishReason.OUT_OF_MEMORY)
        self.failed.append(sequence.index)
        if crowd.batch is not None:  # a batch that is open does not wait for others to come
            crowd.batch.places = min(crowd.batch.places, len(crowd.waiting))

    def _victim(self, now_ticks: int) -> Sequence:
        crowd, name = self._crowd, self._crowd.config.victim
        choose = policy.victim(name)
        if choose is policy.youngest:
            return crowd.prefilling[-1] if crowd.prefilling else crowd.cohort.youngest()
        views = crowd.views((*crowd.cohort, *crowd.prefilling), now_ticks)
        chosen = choose(views, now_ticks)
        if all(view.index != chosen for view in views):
            raise ConfigError(f"Engine.victim = '{name}' chose request {chosen}, which does not run")
        return crowd.sequences[chosen]

    def _preempt(self, victim: Sequence, now_ticks: int) -> None:
        crowd = self._crowd
        if victim.join:
            crowd.cohort.leave(victim)
            victim.last_token_ticks = now_ticks
        else:
            crowd.prefilling.remove(victim)
        kept = crowd.memory.set_aside(victim)
        crowd.vacate(victim)
        if not kept:
            victim.kv_tokens = 0
            victim.prefill_target = victim.request.prompt_tokens + victim.generated
        victim.preemptions += 1
        crowd.waiting.put(victim, now_ticks)
        crowd.log.preempted(victim.index, now_ticks)
