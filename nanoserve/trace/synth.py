"""Seeded traces: an arrival process, two length distributions, and sessions if wanted.

One spec and one seed give one trace, byte for byte. Arrivals, lengths and sessions draw from separate streams of the
seed, so changing one of them leaves the others as they were. Lengths are stratified: n requests take one value from
each n-th part of their distribution, in random order, so that even a short trace has the quantiles it was asked for.
Next: `arrivals`, `lengths`, `presets` (published traces as specs), `source` (specs from a config).
"""

import dataclasses
import math

import numpy as np

from nanoserve.specs.errors import ConfigError
from nanoserve.trace.arrivals import Arrivals
from nanoserve.trace.lengths import Lengths
from nanoserve.trace.ranges import require
from nanoserve.trace.types import MAX_TOKENS, Ragged, Trace

SESSION_BLOCK_TOKENS = 16  # granularity at which the turns of a session share their prefix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sessions:
    """Conversations: each turn's prompt is all earlier prompts and outputs of its session, and a new part.

    Attributes:
      mean_turns: of a geometric distribution, at least 1.
      think_time_s: mean time from one turn's arrival to the next (exponential). It stands for the answer and its
        reader together, because a trace is made before anyone knows how fast it is served.
      max_context_tokens: a session ends before the turn whose prompt and output together would exceed it; what the user
        says next opens a new session.
    """

    mean_turns: float
    think_time_s: float
    max_context_tokens: int = MAX_TOKENS

    def __post_init__(self):
        require(self, "mean_turns", 1 <= self.mean_turns < math.inf, "at least 1 and finite")
        require(self, "think_time_s", 0 <= self.think_time_s < math.inf, "at least 0 and finite")
        require(self, "max_context_tokens", 2 <= self.max_context_tokens <= MAX_TOKENS, f"2 to {MAX_TOKENS:,}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthSpec:
    """What to generate.

    Attributes:
      name: of the trace. requests: how many.
      arrivals: of requests; with sessions, of their first turns.
      prompt, output: lengths; with sessions, `prompt` is what a turn adds.
      correlation: of prompt and output, between the normals behind their ranks (a Gaussian copula), -1 to 1.
      sessions: None means that every request stands alone.
    """

    name: str
    requests: int
    arrivals: Arrivals
    prompt: Lengths
    output: Lengths
    correlation: float = 0.0
    sessions: Sessions | None = None

    def __post_init__(self):
        require(self, "requests", self.requests >= 1, "at least 1")
        require(self, "correlation", -1 <= self.correlation <= 1, "from -1 to 1")


def synthesize(spec: SynthSpec, seed: int) -> Trace:
    """Generates a trace.

    Args:
      spec: what to generate. seed: at least 0.

    Returns:
      A validated trace of `spec.requests` requests; with sessions also their numbers, turns and shared prefixes.

    Raises:
      ConfigError: for a negative seed. TraceError: if a session outgrows the longest prompt a trace may hold.
    """
    if seed < 0:
        raise ConfigError(f"seed = {seed}: must be at least 0")
    arrival_rng, length_rng, session_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    prompt, output = _lengths(spec, length_rng)
    source = f"{spec.name}, generated with seed {seed}"
    if spec.sessions is None:
        arrival_s = spec.arrivals.times_s(spec.requests, arrival_rng)
        trace = Trace(name=spec.name, source=source, arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output)
        return trace.validated()
    session, turn, prompt = _conversations(spec.sessions, prompt, output, session_rng)
    started_s = spec.arrivals.times_s(int(session[-1]) + 1, arrival_rng)
    arrival_s = started_s[session] + _since_start_s(turn, spec.sessions.think_time_s, session_rng)
    order = np.argsort(arrival_s, kind="stable")
    return Trace(
        name=spec.name,
        source=source,
        arrival_s=arrival_s[order],
        prompt_tokens=prompt[order],
        output_tokens=output[order],
        session=session[order],
        turn=turn[order],
        prefix_hashes=growing_prefixes(session[order], prompt[order]),
        prefix_block_tokens=SESSION_BLOCK_TOKENS,
    ).validated()


def _lengths(spec: SynthSpec, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    first, second = rng.standard_normal((2, spec.requests))
    second = spec.correlation * first + math.sqrt(1 - spec.correlation**2) * second
    return _stratified(spec.prompt, first, rng), _stratified(spec.output, second, rng)


def _stratified(lengths: Lengths, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One length from each n-th part of the distribution; the smallest goes where `order` is smallest. int64 [n]."""
    ranks = np.argsort(np.argsort(order))
    levels = (ranks + rng.uniform(1e-9, 1, len(ranks))) / len(ranks)  # never 0, where a quantile may be infinite
    return np.rint(lengths.tokens_at(levels)).astype(np.int64)


def _conversations(
    sessions: Sessions, added: np.ndarray, output: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deals requests to sessions, one after the other: (session, turn, prompt with its context), each int64 [N]."""
    planned_turns = rng.geometric(1 / sessions.mean_turns, len(added)).tolist()
    rows, session, turns_left, turn, context = [], -1, 0, 0, 0
    for new_tokens, output_tokens in zip(added.tolist(), output.tolist(), strict=True):
        if turns_left == 0 or context + new_tokens + output_tokens > sessions.max_context_tokens:
            session, turn, context = session + 1, 0, 0
            turns_left = planned_turns[session]
        prompt_tokens = context + new_tokens
        rows.append((session, turn, prompt_tokens))
        context = prompt_tokens + output_tokens
        turn += 1
        turns_left -= 1
    columns = np.array(rows, np.int64)
    return columns[:, 0], columns[:, 1], columns[:, 2]


def _since_start_s(turn: np.ndarray, think_time_s: float, rng: np.random.Generator) -> np.ndarray:
    """Time of each turn since its session's first; rows are grouped by session. float64 [N]."""
    total_s = np.cumsum(rng.exponential(1.0, len(turn)) * think_time_s)
    first = np.arange(len(turn)) - turn
    return total_s - total_s[first]


def growing_prefixes(session: np.ndarray, prompt: np.ndarray) -> Ragged:
    """Hashes of prompts that only grow: each session has a run of ids of its own, and a prompt is the start of it.

    Args:
      session: int64 [N], dense. prompt: int64 [N], tokens.

    Returns:
      Ids of the whole blocks of `SESSION_BLOCK_TOKENS` tokens of every prompt.
    """
    blocks = prompt // SESSION_BLOCK_TOKENS
    longest = np.zeros(session.max() + 1, np.int64)
    np.maximum.at(longest, session, blocks)
    first_id = np.cumsum(longest) - longest
    offsets = np.append(0, np.cumsum(blocks))
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], blocks)
    return Ragged(place + np.repeat(first_id[session], blocks), offsets)
