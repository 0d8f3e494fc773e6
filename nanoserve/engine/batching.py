"""Static batching: a batch is gathered, runs, and leaves as one.

A batch opens when nothing runs and either a whole one waits or the oldest has waited long enough. Nobody joins it once
it decodes. Who has all tokens is held, slot, pages and row, until the last member has; then all leave together, which
is when their callers hear of them. Under memory pressure the pages of held members go first. This is how servers worked
before continuous batching (Yu et al., Orca, OSDI 2022, section 2), and what it is compared with. Next: `scheduler`.
"""

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.memory import KvMemory
from nanoserve.engine.queue import Queue
from nanoserve.engine.sequence import Sequence
from nanoserve.engine.types import FinishReason, to_ticks


class StaticBatch:
    """The batch that runs, or the one to come."""

    def __init__(self, config: EngineConfig):
        """Makes a batch that is not open; the config says how large, and how long the oldest waits."""
        self._max_seqs = config.max_seqs
        self._timeout_ticks = to_ticks(config.static_timeout_s)
        self._held: dict[int, tuple[Sequence, FinishReason]] = {}  # by request, in order of finishing
        self.places = 0  # how many may still be admitted to the open batch

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.index in self._held

    @property
    def kv_tokens(self) -> int:
        """KV positions in the pages that are held."""
        return sum(sequence.kv_tokens for sequence, _ in self._held.values() if sequence.pages)

    def due_ticks(self, waiting: Queue) -> int:
        """When a batch that is not full opens; somebody must wait."""
        return min(sequence.request.arrival_ticks for sequence in waiting) + self._timeout_ticks

    def opens(self, waiting: Queue, now_ticks: int) -> bool:
        """Opens the batch if it is time; nothing runs and somebody waits."""
        if not self.places and (len(waiting) >= self._max_seqs or self.due_ticks(waiting) <= now_ticks):
            self.places = min(len(waiting), self._max_seqs)
        return self.places > 0

    def hold(self, sequence: Sequence, reason: FinishReason) -> None:
        """Keeps a member that has all its tokens."""
        self._held[sequence.index] = sequence, reason

    def drop(self, sequence: Sequence) -> None:
        """Forgets a held member, which leaves by itself."""
        del self._held[sequence.index]

    def give_up_pages(self, memory: KvMemory) -> bool:
        """Gives back the pages of held members; False if there are none."""
        holders = [sequence for sequence, _ in self._held.values() if sequence.pages]
        for sequence in holders:
            memory.note_held(sequence, completed=True)
            memory.give_back(sequence)
        return bool(holders)

    def end(self) -> list[tuple[Sequence, FinishReason]]:
        """Ends the batch: all who were held, and why each was done."""
        held, self._held = list(self._held.values()), {}
        return held
