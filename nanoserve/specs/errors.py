"""The errors a user can cause, one class per kind of thing that is wrong.

Every message says what is wrong, where (file:line or field path), the nearest valid name where there is one, and what
to do. Commands print the message alone and exit with code 2; anything that is not a `NanoserveError` is our bug.
"""

import difflib
from collections.abc import Iterable


class NanoserveError(Exception):
    """Base of every error that a user of nanoserve can cause and mend."""


class ConfigError(NanoserveError):
    """A config file, flag, or registry name that cannot be used."""


class TraceError(NanoserveError):
    """A trace that is malformed, truncated, or out of range."""


class WeightsError(NanoserveError):
    """A checkpoint or tokenizer that is missing, truncated, hostile, or of another model."""


class CapacityError(NanoserveError):
    """Something that does not fit: weights in memory, a request in the page pool, output on the disk."""


class SnapshotError(NanoserveError):
    """A snapshot of a run that cannot be taken, is missing or damaged, or is of another run."""


class RequestError(NanoserveError):
    """A single request that the engine cannot serve."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'? ` style advice for a misspelt name, with the valid names when they are few.

    Args:
      name: what the user wrote.
      valid: the names that would have been accepted.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    by_lower = {n.lower(): n for n in names}
    hint = f" Did you mean '{by_lower[close[0]]}'?" if close else ""
    listing = f" Valid names: {', '.join(names)}." if names and (not close or len(names) <= 12) else ""
    return hint + listing
