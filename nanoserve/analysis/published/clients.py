"""Why a request never joins the step that begins when it arrives: `OneStepLate`, a load around a load.

An engine that plans a step while the one before runs has planned the next step already when a request comes. And where
it plans between steps, the answer that ends in one step still has to reach its user, and the user's next prompt the
server, before that user can be in another. Either way a request joins one step later than a scheduler that is told of
it at once would have it.

Invariant: a request's arrival stays the moment its user sent it, so the step counts in its time to first token.
Next: `scenario`.
"""

from nanoserve.engine.engine import Load

_Due = tuple[int, int]  # (trace row, arrival in ticks)


class OneStepLate:
    """A load before an engine whose next step is always planned already.

    The engine takes requests once before each plan: what one call finds, the next one hands over. An idle engine waits
    for nothing, because time does not pass between its calls.
    """

    def __init__(self, load: Load):
        """Puts the step that is already planned between `load` and the engine."""
        self._load = load
        self._found: list[_Due] = []
        self._found_at = 0

    def next_ticks(self) -> int | None:
        """When the engine should look again: at once if a request waits for the next step."""
        return self._found_at if self._found else self._load.next_ticks()

    def take(self, now_ticks: int) -> list[_Due]:
        """What the call before this one found."""
        joining, self._found = self._found, self._load.take(now_ticks)
        self._found_at = now_ticks
        return joining

    def finished(self, row: int, now_ticks: int) -> None:
        """Told that a request returned."""
        self._load.finished(row, now_ticks)
