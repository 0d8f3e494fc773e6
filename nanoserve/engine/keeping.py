"""KV that stays on the device between two turns of a session, for so long after the first of them ended.

A next turn that comes in time computes only what is new in its prompt. Prompts of later turns contain what was said
before, so a prompt that is longer than what is kept is taken to begin with it; a shorter one begins with something
else and finds nothing. One session has one entry, that of the turn that ended last.

Invariants: a kept page has no other holder; entries leave by being taken, dropped, replaced or expired, and only the
first gives its pages to somebody else. Nothing happens by itself when time passes: the scheduler says what time it is
before it decides anything, so results do not depend on how steps are gathered into plans. Next: `memory`, which decides
when an entry is made, taken or dropped; `prefix`, which knows what pages hold and shares them.
"""

import dataclasses
import heapq
from collections.abc import Iterator
from typing import Protocol

from nanoserve.engine.types import Request, to_ticks


class Pages(Protocol):
    """Where pages go that nobody needs any more."""

    def free(self, pages: list[int], /) -> None:
        """Takes them back."""
        ...


@dataclasses.dataclass(slots=True, eq=False)
class Kept:
    """What is kept of one session.

    Attributes:
      session: whose. pages: in position order; a contiguous run is kept whole. tokens: KV positions in them.
      until_ticks: when it is let go.
    """

    session: int
    pages: list[int]
    tokens: int
    until_ticks: int


class KeptSessions:
    """The KV of turns that ended, by session."""

    def __init__(self, keep_s: float, pool: Pages):
        """Starts empty. `keep_s`: how long after its end a turn's KV stays. `pool`: where its pages then go."""
        self._keep_ticks, self._pool = to_ticks(keep_s), pool
        self._by_session: dict[int, Kept] = {}
        self._line: list[tuple[int, int, Kept]] = []  # a heap of (until, number, entry); entries that left are stale
        self._count = 0  # entries so far
        self.tokens = 0  # KV positions, all sessions together

    def __len__(self) -> int:
        return len(self._by_session)

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._by_session.values())

    def keep(self, session: int, pages: list[int], tokens: int, ticks: int) -> None:
        """Keeps what a turn leaves that ended at `ticks`, in the place of what an earlier one left."""
        if (before := self._by_session.get(session)) is not None:
            self.drop(before)
        entry = self._by_session[session] = Kept(session, pages, tokens, ticks + self._keep_ticks)
        self._count += 1
        heapq.heappush(self._line, (entry.until_ticks, self._count, entry))
        self.tokens += tokens

    def find(self, request: Request) -> Kept | None:
        """What is kept that a request's prompt begins with; something is left to compute."""
        if request.session is None:
            return None
        entry = self._by_session.get(request.session)
        return entry if entry is not None and entry.tokens < request.prompt_tokens else None

    def take(self, entry: Kept) -> list[int]:
        """Hands an entry's pages to the next turn."""
        del self._by_session[entry.session]
        self.tokens -= entry.tokens
        return entry.pages

    def drop(self, entry: Kept) -> None:
        """Frees what is kept of a session."""
        self._pool.free(self.take(entry))

    def drop_oldest(self, but: Kept | None = None) -> bool:
        """Frees what would be let go next, other than one entry; False if there is nothing else."""
        spared = None
        while (top := self._top()) is not None and top[2] is but:
            spared = heapq.heappop(self._line)
        if top is not None:
            self.drop(top[2])
        if spared is not None:
            heapq.heappush(self._line, spared)
        return top is not None

    def expire(self, now_ticks: int) -> None:
        """Frees everything whose time is up."""
        while (top := self._top()) is not None and top[0] <= now_ticks:
            self.drop(top[2])

    def _top(self) -> tuple[int, int, Kept] | None:
        """The entry that is let go next, in the heap still."""
        line = self._line
        while line and self._by_session.get(line[0][2].session) is not line[0][2]:
            heapq.heappop(line)
        return line[0] if line else None
