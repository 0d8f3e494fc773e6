"""The requests of a service's logs as a trace that can be replayed: when, how long, of which session.

A log tells what happened under one config. What a request would have been answered under another is not in it where the
request failed: its answer's length is then drawn, seeded, from answered requests with prompts of about its length, and
counted in the notes. The limit that a client stated is not in a log either; where blocks were set aside in advance
(`allocated_blocks`), it is what they had room for. Next: `stretches`.
"""

import dataclasses

import numpy as np
import polars as pl

from nanoserve.specs.errors import TraceError
from nanoserve.trace.columns import dense, turns_in_order
from nanoserve.trace.slices import chosen, with_stated_limit
from nanoserve.trace.types import Ragged, Trace

COLUMNS = ("time_s", "prompt_tokens", "response_tokens", "status", "session_id", "allocated_blocks")
"""What is taken of the joined table, where it is there."""

_OK = 200
_BINS = 16  # of prompt lengths, when an answer's length is drawn


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Ids of the whole blocks that each prompt begins with, and the tokens of a block."""

    hashes: Ragged
    block_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests to replay.

    Attributes:
      trace: sorted by arrival; time 0 is the start of the logs. notes: what was assumed, a sentence each.
      drawn: requests whose answer had to be drawn.
    """

    trace: Trace
    notes: tuple[str, ...]
    drawn: int


def workload(
    requests: pl.DataFrame,
    *,
    name: str,
    block_tokens: int | None = None,
    prefixes: Prefixes | None = None,
    seed: int = 0,
) -> Workload:
    """Makes a trace of logged requests.

    Args:
      requests: columns of `COLUMNS`, the first three at least; sorted by `time_s`.
      name: of the trace. block_tokens: tokens of a KV block, if known.
      prefixes: what the prompts begin with, one row a request, if known.
      seed: of the lengths that are drawn.

    Raises:
      TraceError: no request was answered, so nothing is known about answers.
    """
    answered = _answered(requests)
    if not answered.any():
        raise TraceError(f"{name}: none of {len(requests):,} requests was answered: nobody knows how long answers are")
    prompt, response = (requests[column].to_numpy().astype(np.int64) for column in ("prompt_tokens", "response_tokens"))
    answers = np.where(answered, response, _drawn(prompt, response, answered, np.random.default_rng(seed)))
    session = None if "session_id" not in requests.columns else _sessions(requests["session_id"])
    whole = Trace(
        name=name,
        source=f"logs of {name}",
        arrival_s=requests["time_s"].to_numpy().astype(np.float64),
        prompt_tokens=prompt,
        output_tokens=answers,
        session=session,
        turn=None if session is None else turns_in_order(session),
        prefix_hashes=None if prefixes is None else prefixes.hashes,
        prefix_block_tokens=None if prefixes is None else prefixes.block_tokens,
    )
    limits = _limits(requests, prompt, block_tokens)
    reserved = limits is not None and bool((limits > answers).any())
    whole = with_stated_limit(whole, limits) if limits is not None and reserved else whole
    trace, drawn = chosen(whole, prompt > 0).validated(), int((~answered & (prompt > 0)).sum())
    return Workload(trace=trace, notes=_notes(len(requests), len(trace), drawn, reserved), drawn=drawn)


def _answered(requests: pl.DataFrame) -> np.ndarray:
    some = (requests["response_tokens"].fill_null(0) > 0).to_numpy()
    if "status" not in requests.columns:
        return some
    return some & (requests["status"].fill_null(_OK) == _OK).to_numpy()


def _drawn(prompt: np.ndarray, response: np.ndarray, answered: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An answer's length for every request, drawn among those of similar prompts; never below what it had received."""
    edges = np.unique(np.quantile(prompt[answered], np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, prompt)
    lengths = np.empty(len(prompt), np.int64)
    for number in np.unique(bins):
        known = response[answered & (bins == number)]
        here = bins == number
        lengths[here] = rng.choice(known if len(known) else response[answered], size=int(here.sum()))
    return np.maximum(lengths, np.maximum(response, 1))


def _sessions(ids: pl.Series) -> np.ndarray:
    """Dense numbers; a request without a session is one of its own."""
    alone = [f"\0{row}" for row in range(len(ids))]
    return dense(each if each is not None else alone[row] for row, each in enumerate(ids.to_list()))


def _limits(requests: pl.DataFrame, prompt: np.ndarray, block_tokens: int | None) -> np.ndarray | None:
    """Output tokens that each request's blocks had room for; those without blocks get the median of the others."""
    if block_tokens is None or "allocated_blocks" not in requests.columns:
        return None
    blocks = requests["allocated_blocks"].fill_null(0).to_numpy()
    room = blocks * block_tokens - prompt
    return None if not (blocks > 0).any() else np.where(blocks > 0, room, int(np.median(room[blocks > 0])))


def _notes(logged: int, kept: int, drawn: int, reserved: bool) -> tuple[str, ...]:
    notes = []
    if logged > kept:
        notes.append(f"{logged - kept:,} requests without a prompt are not replayed.")
    if drawn:
        notes.append(
            f"{drawn:,} of {kept:,} requests ({drawn / kept:.1%}) were not answered; the lengths of their answers are "
            "drawn from answered requests with prompts of about the same length."
        )
    if reserved:
        notes.append("The limit that a client stated is taken to be what its KV blocks had room for.")
    return tuple(notes)
