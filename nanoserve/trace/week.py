"""A week of a chatbot service, generated: who talks to it, when, in which conversations, and how long everything is.

A conversation's prompts grow: each holds the earlier prompts and answers of its session and what the user says now. The
arrivals are given first and conversations are woven into them: an arrival is the next turn of the conversation that has
been ready for longest, or the first turn of a new one where none is ready. So the arrival process is kept exactly, with
bursts that hold turns of many conversations. It is an open loop: a user goes on whether or not an answer came.

Invariants: one spec and one seed give one trace, byte for byte; within a session prompts grow by at least the answer
before; a session has one user, a user one region. Next: `chatbot` (the week that is shipped), `arrivals.WeeklyBursts`.
"""

import dataclasses
import heapq
import math
import statistics

import numpy as np

from nanoserve.specs.errors import ConfigError
from nanoserve.trace.arrivals import Arrivals
from nanoserve.trace.columns import dense
from nanoserve.trace.lengths import Quantiles
from nanoserve.trace.ranges import require, require_positive
from nanoserve.trace.synth import SESSION_BLOCK_TOKENS, growing_prefixes
from nanoserve.trace.types import Trace

_NORMAL = statistics.NormalDist()
_HOUR_S = 3600.0
_DAY_HOURS = 24
_RANK_LEVELS = (np.arange(4096) + 0.5) / 4096
_DAYLIGHT = 0.8  # of a region's sessions, how much their rate swings about its mean in the course of a day
_TALKATIVE_RANKS = 10  # the user of rank r talks as 1 / (r + 10): the first hundred of a thousand hold half of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Where users are.

    Attributes:
      share: of all sessions, relative to the other regions. peak_hour: of the day, UTC, when most of them begin.
    """

    share: float
    peak_hour: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Talk:
    """How conversations go.

    Attributes:
      first, later: tokens that the user adds in the first turn, and in one after it.
      answer: tokens of an answer.
      correlation: of an answer and its whole prompt, between the normals behind their ranks, -1 to 1.
      prompt: whole prompts, history included, as `first`, `later` and `answer` make them: ranks are read from it.
      short_turns, long_turns: mean turns of casual and of long conversations, both geometric.
      long_share: of conversations, those that are long.
      think_s: median of the time from one turn to when the user is ready for the next (log-normal, with `think_sigma`),
        after at least `least_think_s`, which stand for reading an answer.
      max_prompt_tokens: a session ends before the turn whose prompt would be longer.
    """

    first: Quantiles
    later: Quantiles
    answer: Quantiles
    prompt: Quantiles
    correlation: float
    short_turns: float
    long_turns: float
    long_share: float
    least_think_s: float
    think_s: float
    think_sigma: float
    max_prompt_tokens: int

    def __post_init__(self):
        require_positive(self, "think_s", "max_prompt_tokens")
        require(self, "correlation", -1 <= self.correlation <= 1, "from -1 to 1")
        require(self, "long_share", 0 <= self.long_share <= 1, "from 0 to 1")
        fits = self.first.tokens[-1] <= self.max_prompt_tokens
        require(self, "first", fits, f"at most max_prompt_tokens = {self.max_prompt_tokens:,} tokens")
        for field in ("short_turns", "long_turns"):
            require(self, field, 1 <= getattr(self, field) < math.inf, "at least 1 and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeekSpec:
    """What to generate.

    Attributes:
      name: of the trace. requests: how many. arrivals: of requests, the first hour being 0:00 UTC of a Monday.
      talk: how conversations go.
      users: how many there are; how much each talks falls off with rank.
      regions: by name.
    """

    name: str
    requests: int
    arrivals: Arrivals
    talk: Talk
    users: int
    regions: dict[str, Region]

    def __post_init__(self):
        require(self, "requests", self.requests >= 1, "at least 1")
        require(self, "users", self.users >= len(self.regions) >= 1, "at least one in each of one or more regions")


def synthesize_week(spec: WeekSpec, seed: int) -> Trace:
    """Generates a trace.

    Args:
      spec: what to generate. seed: at least 0.

    Returns:
      A validated trace with sessions, turns, users (`client`), regions and shared prefixes.

    Raises:
      ConfigError: for a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed = {seed}: must be at least 0")
    streams = (np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(4))
    arrival_rng, talk_rng, think_rng, people_rng = streams
    arrival_s = spec.arrivals.times_s(spec.requests, arrival_rng)
    conversations = _conversations(spec.talk, spec.requests, talk_rng)
    session, turn = _woven(spec.talk, arrival_s, conversations.turns, think_rng)
    row = conversations.first_row[session] + turn
    prompt = conversations.prompt[row]
    began_s = arrival_s[turn == 0]
    user, region = _people(spec, began_s, people_rng)
    names = tuple(spec.regions)
    return Trace(
        name=spec.name,
        source=f"{spec.name}, generated with seed {seed}",
        arrival_s=arrival_s,
        prompt_tokens=prompt,
        output_tokens=conversations.answer[row],
        session=session,
        turn=turn,
        client=dense(user[session].tolist()),
        region=tuple(names[place] for place in region[session].tolist()),
        prefix_hashes=growing_prefixes(session, prompt),
        prefix_block_tokens=SESSION_BLOCK_TOKENS,
    ).validated()


@dataclasses.dataclass(frozen=True)
class _Conversations:
    """Turns of many sessions, one session after the other.

    Attributes:
      turns, first_row: int64 [sessions], how many a session has and where they begin.
      prompt, answer: int64 [turns of all].
    """

    turns: np.ndarray
    first_row: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray


def _conversations(talk: Talk, count: int, rng: np.random.Generator) -> _Conversations:
    """As many sessions as could be wanted, made turn by turn, all of them at once."""
    planned = rng.geometric(
        np.where(rng.uniform(size=count) < talk.long_share, 1 / talk.long_turns, 1 / talk.short_turns)
    )
    going, history = np.arange(count), np.zeros(count, np.int64)
    rows, turn = [], 0
    while len(going):
        said = talk.later if turn else talk.first
        prompt = history[going] + _whole(said, rng.uniform(size=len(going)))
        fits = prompt <= talk.max_prompt_tokens
        going, prompt = going[fits], prompt[fits]
        answer = _answers(talk, prompt, rng)
        rows.append((going, prompt, answer))
        history[going] = prompt + answer
        turn += 1
        going = going[planned[going] > turn]
    session, prompt, answer = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = np.argsort(session, kind="stable")  # turn by turn before, so turns stay in order
    turns = np.bincount(session, minlength=count)
    return _Conversations(turns, np.cumsum(turns) - turns, prompt[order], answer[order])


def _answers(talk: Talk, prompt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Answers whose ranks go with the ranks of their prompts; int64 [prompts]."""
    normals = np.array([_NORMAL.inv_cdf(level) for level in _RANK_LEVELS.tolist()])
    ranks = np.interp(prompt, talk.prompt.tokens, talk.prompt.levels)
    mixed = talk.correlation * np.interp(ranks, _RANK_LEVELS, normals)
    mixed += math.sqrt(1 - talk.correlation**2) * rng.standard_normal(len(prompt))
    return _whole(talk.answer, np.interp(mixed, normals, _RANK_LEVELS))


def _woven(
    talk: Talk, arrival_s: np.ndarray, turns: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Whose turn each arrival is: (session, turn), both int64 [N]; sessions are numbered as they begin."""
    think_s = talk.least_think_s + talk.think_s * np.exp(talk.think_sigma * rng.standard_normal(len(arrival_s)))
    planned, done, rows = turns.tolist(), [0] * len(turns), []
    ready: list[tuple[float, int]] = []  # a heap of (since when, session)
    begun = 0
    for time_s, back_s in zip(arrival_s.tolist(), (arrival_s + think_s).tolist(), strict=True):
        if ready and ready[0][0] <= time_s:
            session = heapq.heappop(ready)[1]
        else:
            session, begun = begun, begun + 1
        rows.append((session, done[session]))
        done[session] += 1
        if done[session] < planned[session]:
            heapq.heappush(ready, (back_s, session))
    columns = np.array(rows, np.int64)
    return columns[:, 0], columns[:, 1]


def _people(spec: WeekSpec, began_s: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Who begins each session: (user, region), both int64 [sessions]; user u lives in region u modulo regions."""
    regions, hour = len(spec.regions), began_s / _HOUR_S % _DAY_HOURS
    shares = np.array([region.share for region in spec.regions.values()])
    peaks = np.array([region.peak_hour for region in spec.regions.values()])
    awake = shares * (1 + _DAYLIGHT * np.cos(2 * np.pi * (hour[:, None] - peaks) / _DAY_HOURS))
    region = _drawn(awake, rng)
    rank = np.arange(spec.users // regions)
    talkative = np.cumsum(1 / (rank + _TALKATIVE_RANKS))
    place = np.searchsorted(talkative, rng.uniform(0, talkative[-1], len(hour)))
    return place * regions + region, region


def _drawn(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A column for each row of weights; int64 [rows]."""
    reached = np.cumsum(weights, axis=1)
    return (rng.uniform(0, reached[:, -1])[:, None] > reached).sum(axis=1)


def _whole(lengths: Quantiles, levels: np.ndarray) -> np.ndarray:
    return np.rint(lengths.tokens_at(levels)).astype(np.int64)
