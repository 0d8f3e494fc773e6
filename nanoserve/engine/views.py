"""Makes the views that policies judge by, and keeps two accounts for them: clients' shares and the pace of prefill.

The scheduler keeps the accounts only for orders that are not steady. What a client was served is the prompts of its
requests that were admitted, each once, and the tokens generated for it: those of requests that left are summed here,
those of requests that are here are read from them. Next: `policy`, which says what the views mean.
"""

from collections.abc import Iterable, Mapping

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.policy import OUTPUT_WEIGHT, View
from nanoserve.engine.sequence import Sequence
from nanoserve.engine.speculating import Cohort
from nanoserve.engine.types import to_ticks


class Views:
    """Views of sequences, and the accounts behind them."""

    def __init__(self, config: EngineConfig, cohort: Cohort, sequences: Mapping[int, Sequence], *, steady: bool):
        """Makes empty accounts.

        Args:
          config: for the deadline. cohort: which knows how far a decoding sequence is.
          sequences: all that are in the engine, by request.
          steady: nobody will ask for the accounts.
        """
        self._cohort = cohort
        self._sequences = sequences
        self._steady = steady
        self._deadline_ticks = None if config.deadline_s is None else to_ticks(config.deadline_s)
        self._served: dict[int, int] = {}  # client -> weighted tokens, without what is being generated
        self._charged: set[int] = set()  # requests that are here and whose prompt is in `_served`
        self._prefill_ticks = self._prefill_tokens = 0

    def __call__(self, sequences: Iterable[Sequence], now_ticks: int) -> list[View]:
        """Views of sequences, in their order."""
        shares = {} if self._steady else self._shares()
        return [self._view(sequence, now_ticks, shares) for sequence in sequences]

    def queued(self, sequence: Sequence) -> None:
        """A request came: a client that had none here starts level with the least served of the others."""
        client = sequence.request.client
        if any(s.request.client == client for s in self._sequences.values() if s is not sequence):
            return
        shares = self._shares()
        others = {s.request.client for s in self._sequences.values()} - {client}
        if others:
            self._served[client] = max(shares.get(client, 0), min(shares.get(other, 0) for other in others))

    def admitted(self, sequence: Sequence) -> None:
        """A request starts: its prompt is charged, once."""
        if sequence.index not in self._charged:
            self._charged.add(sequence.index)
            client = sequence.request.client
            self._served[client] = self._served.get(client, 0) + sequence.request.prompt_tokens

    def left(self, sequence: Sequence) -> None:
        """A request leaves, its counters written back."""
        self._charged.discard(sequence.index)
        client = sequence.request.client
        self._served[client] = self._served.get(client, 0) + OUTPUT_WEIGHT * sequence.generated

    def prefilled(self, tokens: int, ticks: int) -> None:
        """A step with chunks took this long."""
        self._prefill_tokens += tokens
        self._prefill_ticks += ticks

    def _view(self, sequence: Sequence, now_ticks: int, shares: Mapping[int, int]) -> View:
        request = sequence.request
        due = None if self._deadline_ticks is None else request.arrival_ticks + self._deadline_ticks
        return View(
            index=sequence.index,
            client=request.client,
            priority=request.priority,
            arrival_ticks=request.arrival_ticks,
            waited_ticks=now_ticks - request.arrival_ticks,
            prompt_tokens=request.prompt_tokens,
            generated=self._generated(sequence),
            deadline_ticks=due,
            prefill_ticks=sequence.prefill_target * self._prefill_ticks // max(1, self._prefill_tokens),
            client_tokens=shares.get(request.client, 0),
        )

    def _generated(self, sequence: Sequence) -> int:
        return self._cohort.generated_of(sequence) if sequence.join else sequence.generated

    def _shares(self) -> dict[int, int]:
        """What every client was served until now."""
        shares = dict(self._served)
        for sequence in self._sequences.values():
            client = sequence.request.client
            shares[client] = shares.get(client, 0) + OUTPUT_WEIGHT * self._generated(sequence)
        return shares
