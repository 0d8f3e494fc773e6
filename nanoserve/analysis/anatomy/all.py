"""Every part of the anatomy, in the order in which a reader wants them."""

from collections.abc import Callable, Sequence

from nanoserve.analysis.anatomy import arrivals, counting, lengths, memory, prefixes, sessions
from nanoserve.analysis.finding import Finding
from nanoserve.analysis.logs.log_set import Joined

ANATOMY: Sequence[Callable[[Joined], Finding | Sequence[Finding]]] = (
    counting.requests,
    counting.numbers,
    arrivals.hours,
    arrivals.cumulative,
    arrivals.gaps,
    arrivals.dispersion,
    lengths.lengths,
    lengths.pair,
    memory.by_prompt,
    sessions.sessions,
    prefixes.prefix,
)
"""Functions of a joined log; each returns what it found, or says why it could not."""
