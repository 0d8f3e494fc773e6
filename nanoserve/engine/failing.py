"""Requests that end because their pages cannot be had: a service without admission control (`when_full = 'fail'`).

Such a service takes a request as soon as a slot is free. It asks for memory then, a contiguous run for all that the
request may need or the pages of its prompt, and for the next page whenever one is full. Where there is none it does not
wait, nor does it take pages from anybody: the request ends, with what it has said so far. Kept sessions stay.

What is written into its record is what an operator would find in a log: how much was asked for, how much was free and
in which pieces, and who held the rest. All numbers are pages at that moment. Pages that leaked (`faults`) belong to
nobody, so they are what the numbers leave unexplained. Next: `pressure`, which decides when this happens.
"""

from collections.abc import Iterable

from nanoserve.engine.memory import KvMemory
from nanoserve.engine.sequence import Sequence


def evidence(wanted_pages: int, memory: KvMemory, sequences: Iterable[Sequence]) -> str:
    """One line about memory that was not enough.

    Args:
      wanted_pages: what was asked for at once. memory: of the engine. sequences: all that may hold pages in it.
    """
    pool, kept = memory.pool, list(memory.kept or ())
    running = [sequence for sequence in sequences if sequence.pages]
    held = sum(len(sequence.pages) for sequence in running) - memory.repeated_tokens // memory.page_tokens
    holders = [(_name(sequence), len(sequence.pages)) for sequence in running]
    holders += [(f"session {entry.session}", len(entry.pages)) for entry in kept]
    name, most = max(holders, key=lambda holder: holder[1], default=("none", 0))
    return (
        f"tried to allocate {wanted_pages} blocks; {pool.free_count} of {pool.num_pages} free, largest free run "
        f"{pool.largest_free_run}; {len(running)} sequences hold {held}, {len(kept)} kept sessions hold "
        f"{sum(len(entry.pages) for entry in kept)}; largest holder {name} with {most}"
    )


def _name(sequence: Sequence) -> str:
    session = sequence.request.session
    return f"request {sequence.index}" if session is None else f"session {session}"
