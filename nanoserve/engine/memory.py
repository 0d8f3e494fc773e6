"""Where the KV of sequences is: in pages on the device, in pages that are known by their content, and on the host.

The scheduler decides who runs; this object owns what it costs in memory. Its verbs come in pairs: `pages_to_start` and
`start` when a sequence is admitted, `grow` while its prompt is written, `set_aside` and `forget` for KV that is kept on
the host, `give_back` when its pages are let go, `retire` when a request leaves for good: then pages may be kept for the
next turn of its session (`keeping`), and `make_room` drops what was kept for longest. With a prefix cache, `start`
begins with the pages that are found, and `learn` says what others may find.

The last token of a prompt is never served from the cache: something has to be computed for a token to be sampled from.
A page that is found is full, so nobody writes to it again, and whoever shares it needs no copy.

Moves gather here until the plan takes them. A sequence that was just admitted and must give way in the same plan has
nothing on the device yet: its move is called off, and its KV stays where it was.

A contiguous run that was kept and is too short for the next turn grows in place where there is room behind it. Where
there is none, a new run is taken and the KV is copied to it: each byte is read and written once on the device, which
takes less time than computing it again, and is a move of its own kind.

Next: `pages`, `runs` and `prefix`, the three pools; `scheduler`, which drives this.
"""

import dataclasses
from collections.abc import Callable

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.faults import Leak, Leaking
from nanoserve.engine.keeping import Kept, KeptSessions
from nanoserve.engine.pages import CheckedPagePool, PagePool
from nanoserve.engine.prefix import CachedPagePool, PageCost, PageKeys, eviction
from nanoserve.engine.runs import RunPool
from nanoserve.engine.sequence import Sequence, pages_for
from nanoserve.engine.types import Move, MoveKind, Request
from nanoserve.specs.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class KvFacts:
    """What an engine cannot know of KV by itself; only what its config asks for is needed.

    Attributes:
      page_keys: what pages hold, for a prefix cache.
      page_cost: what pages cost to compute again, for eviction by cost.
      swap_is_cheaper: tokens -> whether bringing their KV to the host and back takes less time than computing it again,
        for `preemption = 'cheaper'`.
      leak: how pages leak, where a fault is planted.
      pool: makes the pool of so many pages that are given one by one, where there is no prefix cache.
    """

    page_keys: PageKeys | None = None
    page_cost: PageCost | None = None
    swap_is_cheaper: Callable[[int], bool] | None = None
    leak: Leak | None = None
    pool: Callable[[int], PagePool] = CheckedPagePool


NOTHING_KNOWN = KvFacts()
"""Enough for a config without a prefix cache and without a choice between swapping and recomputing."""
SIMULATED = KvFacts(pool=PagePool)
"""The same for an engine whose pages hold nothing."""


class KvMemory:
    """The pages of one engine, and the host memory behind them."""

    def __init__(self, config: EngineConfig, num_pages: int, facts: KvFacts):
        """Makes an empty memory.

        Args:
          config: page size, allocator, cache, and what becomes of a victim's KV. num_pages: of the device.
          facts: from outside.

        Raises:
          ConfigError: the config asks for what `facts` does not have.
        """
        self.page_tokens = config.page_tokens
        self._keys = None
        if config.prefix_cache != "off":
            self._keys = _needed(facts.page_keys, "prefix_cache", config.prefix_cache)
        self.paged, self._cache = _pools(config, num_pages, facts)
        self.caches = self._cache is not None
        self.pool: PagePool | CachedPagePool | RunPool = self.paged or RunPool(num_pages)
        self._runs = self.pool if isinstance(self.pool, RunPool) else None
        self.keep_free(config.free_page_watermark)
        self._swaps = config.preemption != "recompute" and self.paged is not None
        self._swap_is_cheaper = None
        if config.preemption == "cheaper":
            self._swap_is_cheaper = _needed(facts.swap_is_cheaper, "preemption", "cheaper")
        self._host_pages = config.host_pages
        self.host_pages_used = 0
        self.moves: list[Move] = []  # of the plan that is being made
        self.fails = config.when_full == "fail"
        self.kept = KeptSessions(config.keep_session_s, self.pool) if config.keep_session_s else None
        self.leaking = None if facts.leak is None else Leaking(facts.leak)

    def keep_free(self, share: float) -> None:
        """Sets the share of the pool that admission keeps free, from now on."""
        self.watermark_pages = int(share * self.pool.num_pages)

    @property
    def repeated_tokens(self) -> int:
        """KV positions that sequences have in common, counted once for each holder beyond the first."""
        return 0 if self._cache is None else self._cache.repeated_count * self.page_tokens

    def worst_case_pages(self, request: Request) -> int:
        """Pages of a prompt and all its output; the last token's KV is never written."""
        return pages_for(request.prompt_tokens + request.output_tokens - 1, self.page_tokens)

    def cached_tokens(self, request: Request) -> int:
        """How much of a request's prompt the prefix cache holds now, without its last token."""
        if self._cache is None or self._keys is None:
            return 0
        return len(self._cache.find(self._keys(request.index, request.prompt_tokens - 1))) * self.page_tokens

    # ---- admission ----

    def pages_to_start(self, sequence: Sequence) -> int:
        """How many of the free pages a sequence takes until it has written its prompt, or all that it had."""
        kept = None if self.kept is None else self._kept_for(sequence)
        if self._runs is not None:
            pages = self.worst_case_pages(sequence.request)
            in_place = kept is not None and pages - len(kept.pages) <= self._runs.room_after(kept.pages)
            return 0 if in_place else pages
        if sequence.returns is not None:
            return pages_for(max(sequence.prefill_target, sequence.kv_tokens + 1), self.page_tokens)
        pages = pages_for(sequence.prefill_target, self.page_tokens)
        if kept is not None:
            pages -= len(kept.pages)
        return pages if self._cache is None else pages - self._cache.held(self._found(sequence))

    def make_room(self, wanted_by: Sequence | None = None) -> bool:
        """Drops the session that was kept for longest, unless requests fail where the pool is full (`when_full`).

        Args:
          wanted_by: who is to start. What is kept for it stays while there is anything else; in pages that are given
            one by one it stays in any case, because it needs as many without.

        Returns:
          Whether one was dropped.
        """
        if self.kept is None or self.fails:
            return False
        own = None if wanted_by is None else self._kept_for(wanted_by)
        if self.kept.drop_oldest(but=own):
            return True
        if own is None or self._runs is None:
            return False
        self.kept.drop(own)
        return True

    def start(self, sequence: Sequence) -> int | None:
        """Gives an admitted sequence the pages that are found for it, those its KV returns to, or its whole run.

        Where nobody waits for memory it takes all pages of its prompt at once.

        Returns:
          The tokens that the prefix cache, or its session, had of it; None where none was asked.
        """
        found = None
        if self.kept is not None and sequence.returns is None and sequence.request.session is not None:
            found = self._go_on(self.kept, sequence)
        if self._runs is not None:
            self._take_run(self._runs, sequence)
        if sequence.returns is not None:
            self._bring_back(sequence, sequence.returns)
        elif self._cache is not None:
            sequence.pages = self._found(sequence)
            self._cache.share(sequence.pages)
            sequence.known_pages = len(sequence.pages)
            found = sequence.kv_tokens = sequence.known_pages * self.page_tokens
        if self.fails and self.paged is not None:
            missing = pages_for(sequence.prefill_target, self.page_tokens) - len(sequence.pages)
            sequence.pages += self.paged.alloc(missing)
        return found

    def grow(self, sequence: Sequence, tokens: int) -> int:
        """Gives a sequence the pages for `tokens` more positions, as far as there are any; returns the positions."""
        past, pages = sequence.kv_tokens, sequence.pages
        missing = -(-(past + tokens) // self.page_tokens) - len(pages)
        if missing <= 0:
            return tokens if tokens > 0 else 0
        while missing > self.pool.free_count:
            if not self.make_room():
                missing = self.pool.free_count
                tokens = (len(pages) + missing) * self.page_tokens - past
        if tokens <= 0:
            return 0
        pages += self.pool.alloc(missing)
        return tokens

    def learn(self, sequence: Sequence) -> None:
        """Tells the prefix cache what the full pages of a sequence hold, its counters being up to date."""
        if self._cache is None or self._keys is None:
            return
        tokens = min(sequence.kv_tokens, sequence.request.prompt_tokens + sequence.generated - 1)
        if tokens // self.page_tokens <= sequence.known_pages:
            return
        keys = self._keys(sequence.index, tokens)
        for page, key in zip(sequence.pages[sequence.known_pages :], keys[sequence.known_pages :], strict=False):
            self._cache.know(page, key)
        sequence.known_pages = max(sequence.known_pages, len(keys))

    def give_back(self, sequence: Sequence) -> None:
        """Takes all pages of a sequence; the prefix cache keeps those it knows."""
        if self._cache is not None and sequence.pages:
            self.learn(sequence)
            sequence.known_pages = 0
        self.pool.free(sequence.pages)
        sequence.pages = []

    def note_held(self, sequence: Sequence, *, completed: bool) -> None:
        """Writes down, for its record, what a sequence has that is about to let go of it, if it never had more.

        Args:
          sequence: its counters are up to date.
          completed: it has all its tokens; pages that were reserved for steps after its stop token do not count, so
            that its record does not depend on how steps are gathered into plans.
        """
        held = len(sequence.pages)
        if not held or held < sequence.most_pages:
            return
        tokens = sequence.valid_tokens
        if completed and self._runs is None:
            held = min(held, -(-tokens // self.page_tokens))
        sequence.most_pages, sequence.written_tokens = held, tokens

    def retire(self, sequence: Sequence, ticks: int, *, completed: bool) -> None:
        """Lets go of what a request has that leaves, on the device and on the host.

        Args:
          sequence: its counters are up to date. ticks: when it left.
          completed: it has all its tokens, so its session may go on.
        """
        self.note_held(sequence, completed=completed)
        if self.moves:  # it ends in the plan that is being made
            self.moves = [move for move in self.moves if move.index != sequence.index]
        if self.leaking is None and self.kept is None:
            self.give_back(sequence)
        else:
            self._let_go(sequence, ticks, completed)
        if sequence.returns is not None:
            self.forget(sequence)

    # ---- KV that is kept elsewhere ----

    def set_aside(self, victim: Sequence) -> bool:
        """Sees to it that a victim's KV is not lost, if the config says so and there is room. Its pages stay its own.

        Returns:
          Whether it is kept; the victim then needs no recomputing.
        """
        self.note_held(victim, completed=False)
        if self._called_off(victim):
            return True
        tokens, pages = victim.kv_tokens, pages_for(victim.kv_tokens, self.page_tokens)
        if not self._swaps or not tokens or (self._swap_is_cheaper and not self._swap_is_cheaper(tokens)):
            return False
        if self._host_pages is not None and self.host_pages_used + pages > self._host_pages:
            return False
        self.host_pages_used += pages
        victim.returns = MoveKind.IN
        self.moves.append(Move(MoveKind.OUT, victim.index, victim.slot, tuple(victim.pages[:pages]), tokens))
        return True

    def forget(self, sequence: Sequence) -> None:
        """Frees what a sequence that leaves has on the host."""
        if sequence.returns is MoveKind.IN:
            self.host_pages_used -= pages_for(sequence.kv_tokens, self.page_tokens)
        sequence.returns = None

    def take_moves(self) -> tuple[Move, ...]:
        """The moves of the plan that is being made: what goes out first."""
        moves, self.moves = self.moves, []
        return tuple(sorted(moves, key=lambda move: move.kind is not MoveKind.OUT))

    def _bring_back(self, sequence: Sequence, kind: MoveKind) -> None:
        count = pages_for(sequence.kv_tokens, self.page_tokens)
        if self.paged is not None:
            sequence.pages = self.pool.alloc(count)
        self.moves.append(Move(kind, sequence.index, sequence.slot, tuple(sequence.pages[:count]), sequence.kv_tokens))
        self.forget(sequence)

    def _called_off(self, victim: Sequence) -> bool:
        """Undoes the move of this plan that would bring a victim's KV here; False if there is none."""
        for place, move in enumerate(self.moves):
            if move.index == victim.index and move.kind is not MoveKind.OUT:
                del self.moves[place]
                self.pool.free(victim.pages)  # not `give_back`: they do not hold what the victim's counters say
                victim.pages, victim.returns = [], move.kind
                if move.kind is MoveKind.IN:
                    self.host_pages_used += len(move.pages)
                return True
        return False

    def _kept_for(self, sequence: Sequence) -> Kept | None:
        """What is kept of a sequence's session, if it would begin with it."""
        return None if self.kept is None or sequence.returns is not None else self.kept.find(sequence.request)

    def _go_on(self, kept: KeptSessions, sequence: Sequence) -> int:
        """Begins where the session's last turn ended, if that is known still; returns the tokens."""
        entry = kept.find(sequence.request)
        if entry is not None:
            sequence.pages, sequence.kv_tokens = kept.take(entry), entry.tokens
        return sequence.kv_tokens

    def _take_run(self, runs: RunPool, sequence: Sequence) -> None:
        """Sees to it that a sequence has one run for all that it may need."""
        held, count = sequence.pages, self.worst_case_pages(sequence.request)
        missing = count - len(held)
        if held and missing <= runs.room_after(held):
            if missing > 0:
                runs.extend(held, missing)
            return
        sequence.pages, tokens = runs.alloc(count), sequence.kv_tokens
        if held:
            source, pages = (tuple(run[: pages_for(tokens, self.page_tokens)]) for run in (held, sequence.pages))
            self.moves.append(Move(MoveKind.COPY, sequence.index, sequence.slot, pages, tokens, source))
            runs.free(held)

    def _let_go(self, sequence: Sequence, ticks: int, completed: bool) -> None:
        """Gives back the pages of a request that leaves, but for those that leak and those that are kept."""
        if self.leaking is not None and sequence.pages:
            self._lose(self.leaking, sequence)
        session, pages = sequence.request.session, sequence.pages
        tokens = min(sequence.valid_tokens, len(pages) * self.page_tokens)
        if self.kept is not None and completed and session is not None and tokens:
            if self.paged is not None:
                needed = pages_for(tokens, self.page_tokens)
                self.paged.free(pages[needed:])
                del pages[needed:]
            self.kept.keep(session, pages, tokens, ticks)
            sequence.pages = []
        self.give_back(sequence)

    def _lose(self, leaking: Leaking, sequence: Sequence) -> None:
        """Takes pages from a sequence's end, where nobody else holds them, that are never given back."""
        pages = sequence.pages
        left = len(pages) - min(leaking.due(), len(pages))
        if self._cache is not None:
            while any(self._cache.holders(page) > 1 for page in pages[left:]):
                left += 1
        elif self._runs is not None:
            self._runs.split(pages, left)
        leaking.lost_pages += len(pages) - left
        del pages[left:]

    def _found(self, sequence: Sequence) -> list[int]:
        """Pages whose content a sequence begins with, without the last token of what it has to write."""
        if self._cache is None or self._keys is None:
            return []
        return self._cache.find(self._keys(sequence.index, sequence.prefill_target - 1))


def _pools(
    config: EngineConfig, num_pages: int, facts: KvFacts
) -> tuple[PagePool | CachedPagePool | None, CachedPagePool | None]:
    """The pool that gives page after page, and the same one as a prefix cache; None for what the config has not."""
    if config.allocator == "contiguous":
        return None, None
    if config.prefix_cache == "off":
        return facts.pool(num_pages), None
    cost = _needed(facts.page_cost, "prefix_cache", "cost") if config.prefix_cache == "cost" else None
    cache = CachedPagePool(num_pages, eviction(config.prefix_cache, cost))
    return cache, cache


def _needed[T](fact: T | None, field: str, value: str) -> T:
    """A fact that a field of the config asks for."""
    if fact is None:
        raise ConfigError(
            f"Engine.{field} = '{value}': whoever makes the engine must say more of KV (engine.memory.KvFacts)"
        )
    return fact
