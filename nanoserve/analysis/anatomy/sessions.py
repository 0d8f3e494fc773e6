"""Conversations: how long, how many turns, how their KV grows, and how soon the next turn or the next one comes.

Sessions are put together by hashes of their ids and taken user by user, in as many passes over the log as keep at
most `ROWS_AT_ONCE` requests in memory. Turns are counted in order of time, whatever the log calls them.
"""

import dataclasses
from collections.abc import Iterator
from typing import Self

import numpy as np
import polars as pl

from nanoserve.analysis.anatomy.counting import duration
from nanoserve.analysis.anatomy.memory import kv_tokens
from nanoserve.analysis.anatomy.sketch import Counts, Floats, merged
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.logs.log_set import Joined

ROWS_AT_ONCE = 5_000_000
_CURVE_POINTS = 200
_LEAST_SESSIONS = 20
"""A mean over sessions that reached a turn wants so many."""
_SUBJECTS = {
    "duration": "Duration of sessions",
    "turns": "Turns of sessions",
    "growth": "KV by turn",
    "gaps": "Gaps between turns and sessions",
}


@dataclasses.dataclass(frozen=True)
class Sessions:
    """Some users' sessions.

    Attributes:
      turns: of each session. durations: seconds from the first to the last arrival, of sessions with two turns or more.
      next_turn: seconds from a turn's arrival to that of the next. next_session: seconds from a session's last arrival
        to the first of its user's next one.
      kv_tokens, reached: int64 [T], sum of KV positions at each turn and how many sessions reached it.
    """

    turns: Counts
    durations: Floats
    next_turn: Floats
    next_session: Floats
    kv_tokens: np.ndarray
    reached: np.ndarray

    @classmethod
    def of(cls, user: np.ndarray, session: np.ndarray, time_s: np.ndarray, kv: np.ndarray) -> Self:
        """Of requests in order of time, all of every user among them.

        Args:
          user, session: uint64 [N], numbers of them; no session has two users. time_s: float [N], ascending.
          kv: int [N], positions at the end.
        """
        order = pl.Series(session).to_frame("session").select(pl.arg_sort_by("session", maintain_order=True))
        order = order.to_series().to_numpy()
        user, session, time_s, kv = (part[order] for part in (user, session, time_s, kv))
        fresh = np.ones(len(user), bool)
        fresh[1:] = session[1:] != session[:-1]
        first = np.flatnonzero(fresh)
        turns = np.diff(first, append=len(user))
        last = first + turns - 1
        turn = np.arange(len(user)) - np.repeat(first, turns)
        several = turns > 1
        return cls(
            Counts.of(turns),
            Floats.of((time_s[last] - time_s[first])[several]),
            Floats.of(np.diff(time_s)[~fresh[1:]]),
            Floats.of(_between_sessions(user[first], time_s[first], time_s[last])),
            np.bincount(turn, weights=kv).astype(np.int64),
            np.bincount(turn),
        )

    def merge(self, other: Self) -> Self:
        """Of both together, which share no user."""
        return type(self)(
            self.turns.merge(other.turns),
            self.durations.merge(other.durations),
            self.next_turn.merge(other.next_turn),
            self.next_session.merge(other.next_session),
            _added(self.kv_tokens, other.kv_tokens),
            _added(self.reached, other.reached),
        )


def sessions(joined: Joined) -> list[Finding]:
    """`anatomy.sessions.duration`, `.turns`, `.growth` and `.gaps`.

    Series: of duration `duration_s`, `share` (cumulative, of sessions with two turns or more); of turns `turns`,
    `sessions`; of growth `turn` (from 0), `kv_tokens` (mean), `sessions`; of gaps `gap_s`, and the cumulative shares
    `next_turn_share` and `next_session_share`.
    """
    if not joined.has("session_id"):
        why = "the log does not say which session a request belongs to"
        return [not_computed(f"anatomy.sessions.{name}", subject, why) for name, subject in _SUBJECTS.items()]
    parts = list(_parts(joined))
    found = merged(parts, lambda columns: Sessions.of(*columns))
    if not found.turns.count:
        why = "no request has a session"
        return [not_computed(f"anatomy.sessions.{name}", subject, why) for name, subject in _SUBJECTS.items()]
    return [_duration(found), _turns(found), _growth(found), _gaps(found, joined.has("user_id"))]


def _duration(found: Sessions) -> Finding:
    key, count = "anatomy.sessions.duration", found.durations.moments.count
    if not count:
        return not_computed(key, _SUBJECTS["duration"], "every session has one turn")
    p50, p95 = found.durations.quantiles((0.5, 0.95)).tolist()
    at = np.unique(found.durations.quantiles(np.linspace(0, 1, _CURVE_POINTS)))
    return Finding(
        key=key,
        title=f"Sessions with several turns last {duration(p50)} in the middle, 5% of them over {duration(p95)}",
        rows=count,
        values={"p50_s": p50, "p95_s": p95, "mean_s": found.durations.moments.mean, "most_s": found.durations.most},
        series={"duration_s": at, "share": found.durations.share_up_to(at)},
    )


def _turns(found: Sessions) -> Finding:
    turns, sessions = found.turns, found.turns.count
    p50, p95 = turns.quantiles((0.5, 0.95)).tolist()
    single, many = (float(turns.times[test].sum() / sessions) for test in (turns.values == 1, turns.values > 10))
    return Finding(
        key="anatomy.sessions.turns",
        title=f"{sessions:,} sessions have {turns.mean:,.2f} turns on average; {single:.1%} have one, {many:.1%} more "
        "than ten",
        rows=turns.total,
        values={
            "sessions": sessions,
            "mean_turns": turns.mean,
            "p50_turns": p50,
            "p95_turns": p95,
            "most_turns": int(turns.values[-1]),
            "share_of_one_turn": single,
            "share_beyond_10_turns": many,
        },
        series={"turns": turns.values.astype(np.float64), "sessions": turns.times.astype(np.float64)},
    )


def _growth(found: Sessions) -> Finding:
    key = "anatomy.sessions.growth"
    enough = found.reached >= min(_LEAST_SESSIONS, int(found.reached[0]))
    turns = int(np.argmin(enough)) if not enough.all() else len(enough)
    if turns < 2:
        return not_computed(key, _SUBJECTS["growth"], f"fewer than {_LEAST_SESSIONS} sessions have a second turn")
    mean = found.kv_tokens[:turns] / found.reached[:turns]
    begun, ended = float(mean[0]), float(mean[-1])
    grown = (ended - begun) / (turns - 1)
    return Finding(
        key=key,
        title=f"KV of a session {'grows' if grown > 0 else 'shrinks'} from {begun:,.0f} tokens at its first turn to "
        f"{ended:,.0f} at turn {turns}, {abs(grown):,.0f} a turn",
        rows=int(found.reached[:turns].sum()),
        values={"first_turn_tokens": begun, "last_turn": turns, "last_turn_tokens": ended, "tokens_a_turn": grown},
        series={
            "turn": np.arange(turns, dtype=float),
            "kv_tokens": mean,
            "sessions": found.reached[:turns].astype(float),
        },
    )


def _gaps(found: Sessions, users: bool) -> Finding:
    key = "anatomy.sessions.gaps"
    turn, session = found.next_turn, found.next_session
    if not turn.moments.count and not session.moments.count:
        return not_computed(key, _SUBJECTS["gaps"], "no session has a second turn and no user a second session")
    known = [floats for floats in (turn, session) if floats.moments.count]
    at = np.unique(np.concatenate([floats.quantiles(np.linspace(0, 1, _CURVE_POINTS)) for floats in known]))
    said = [
        f"{what} after {duration(float(floats.quantiles((0.5,))[0]))}"
        for what, floats in (("the next turn comes", turn), ("a user's next session", session))
        if floats.moments.count
    ]
    title = f"{', '.join(said)} (medians)"
    return Finding(
        key=key,
        title=title[0].upper() + title[1:],
        rows=turn.moments.count + session.moments.count,
        values={
            **{f"next_turn_{name}": value for name, value in _percentiles(turn).items()},
            **{f"next_session_{name}": value for name, value in _percentiles(session).items()},
        },
        series={
            "gap_s": at,
            "next_turn_share": turn.share_up_to(at),
            "next_session_share": session.share_up_to(at),
        },
        because=() if users else ("the log names no users: a session's successor is not known",),
    )


def _percentiles(floats: Floats) -> dict[str, float | None]:
    values = floats.quantiles((0.5, 0.95)).tolist() if floats.moments.count else [None, None]
    return {"count": floats.moments.count, "p50_s": values[0], "p95_s": values[1]}


def _parts(joined: Joined) -> Iterator[tuple[np.ndarray, ...]]:
    """Requests of some users after the other, as the columns that `Sessions.of` takes."""
    session = pl.col("session_id").hash(seed=1)
    user = pl.coalesce(pl.col("user_id").hash(), session) if joined.has("user_id") else session
    table = joined.table.filter(pl.col("session_id").is_not_null())
    # Two users with sessions of one name have two sessions.
    table = table.select(user=user, session=session ^ (user // 2), time_s="time_s", kv=kv_tokens(joined))
    parts = -(-joined.rows // ROWS_AT_ONCE)
    for part in range(parts):
        rows = table.filter(pl.col("user") % parts == part).collect(engine="streaming")
        yield tuple(rows[name].to_numpy() for name in ("user", "session", "time_s", "kv"))


def _between_sessions(user: np.ndarray, first_s: np.ndarray, last_s: np.ndarray) -> np.ndarray:
    """From a session's end to the beginning of the next of its user; sessions that overlap have no gap."""
    order = np.lexsort((first_s, user))
    user, first_s, last_s = user[order], first_s[order], last_s[order]
    gaps = first_s[1:] - last_s[:-1]
    return gaps[(user[1:] == user[:-1]) & (gaps >= 0)]


def _added(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum of two arrays, the shorter one continued with zeros."""
    total = np.zeros(max(len(one), len(other)), np.int64)
    total[: len(one)] += one
    total[: len(other)] += other
    return total
