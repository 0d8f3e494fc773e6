"""KV pages on their way between a device's pool and buffers elsewhere: swapped to the host, or taken to another pool.

A sequence's pages of all layers, factors of 8-bit pages included, are gathered in pieces of at most `MOST_PAGES`, so
that what the device needs besides its pool stays small, and scattered to wherever the sequence gets pages again. Bits
are copied, never computed with. The newest token of a sequence that comes goes to its slot in the same program.

Programs are compiled for a fixed ladder of pieces when a run warms up; nothing compiles later. Padding reads page 0 and
writes nowhere. Next: `jax_executor`, which moves before it dispatches a step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from nanoserve.engine.types import Move, MoveKind
from nanoserve.executors.buckets import bucket, geometric_ladder
from nanoserve.model.pool import NOWHERE, KvPool
from nanoserve.model.step import DeviceState

MOST_PAGES = 64
"""Of one piece. 64 pages of 16 tokens of Llama-2-70B are 0.3 GB."""

Piece = Any  # a `KvPool` of [L, N, p, ...] arrays, on the host or on devices: N padded to a rung of the ladder


class Holder(Protocol):
    """Whatever keeps a device state: the executor, and the drafter of a run that speculates."""

    state: DeviceState


class HostPages:
    """Moves pages of one state, and keeps what is away, by request."""

    def __init__(self, holder: Holder, table_pages: int, places: DeviceState | None = None):
        """Compiles nothing yet.

        Args:
          holder: of the state, which is replaced where pages come in. table_pages: most pages of a sequence.
          places: where each part of the state lives, as `model.places.state_places` says.
        """
        self._holder = holder
        self._rungs = geometric_ladder(min(table_pages, MOST_PAGES), 2)
        self._where = None if places is None else jax.tree.map(lambda leaf: leaf.sharding, holder.state.pool)
        self._gather = jax.jit(_gathered, out_shardings=self._where)
        self._scatter = jax.jit(_scattered, donate_argnames="state", out_shardings=places)
        self._away: dict[int, list[Piece]] = {}

    @property
    def programs(self) -> int:
        """How many programs `warm_up` compiles."""
        return 2 * len(self._rungs)

    def warm_up(self) -> Iterator[str]:
        """Compiles every program and moves nothing; yields the name of each when it is done."""
        for rung in self._rungs:
            piece = self.fetch([0] * rung)[0]
            yield f"fetch_pages[{rung}]"
            self._put(piece, np.full(rung, NOWHERE, np.int32), len(self._holder.state.last_tokens) - 1, 0)
            yield f"put_pages[{rung}]"

    def move(self, moves: Sequence[Move], newest: Callable[[int], int]) -> None:
        """Runs the moves of a plan, in their order, before its step is dispatched.

        Args:
          moves: what goes and what comes; what comes went before, or was handed to `expect`.
          newest: request -> its last token.
        """
        for move in moves:
            if move.kind is MoveKind.OUT:
                self._away[move.index] = jax.device_get(self.fetch(move.pages))
            else:
                self.put(self._away.pop(move.index), move.pages, move.slot, newest(move.index))

    def fetch(self, pages: Sequence[int]) -> list[Piece]:
        """Copies of pages, as arrays on the device."""
        return [self._gather(self._holder.state.pool, ids) for ids in self._pieces(pages, padding=0)]

    def put(self, pieces: Sequence[Piece], pages: Sequence[int], slot: int, token: int) -> None:
        """Writes pieces that `fetch` made, of a pool of the same kind, and a slot's newest token."""
        for piece, ids in zip(pieces, self._pieces(pages, padding=NOWHERE), strict=True):
            self._put(piece, ids, slot, token)

    def expect(self, index: int, pieces: list[Piece]) -> None:
        """Keeps the pages of a request that comes from another engine until a plan wants them here."""
        self._away[index] = pieces

    def release(self, index: int) -> None:
        """Forgets the pages of a request that left."""
        self._away.pop(index, None)

    def _put(self, piece: Piece, ids: np.ndarray, slot: int, token: int) -> None:
        piece = jax.device_put(piece, self._where)
        self._holder.state = self._scatter(self._holder.state, piece, ids, np.int32(slot), np.int32(token))

    def _pieces(self, pages: Sequence[int], padding: int) -> Iterator[np.ndarray]:
        """Page ids in pieces of a rung each."""
        most = self._rungs[-1]
        for begin in range(0, len(pages), most):
            piece = pages[begin : begin + most]
            ids = np.full(bucket(self._rungs, len(piece)), padding, np.int32)
            ids[: len(piece)] = piece
            yield ids


def _gathered(pool: KvPool, pages_N: jax.Array) -> KvPool:
    """Pages of all layers: [L, N, ...]."""
    return jax.tree.map(lambda array: array[:, pages_N], pool)


def _scattered(state: DeviceState, piece: KvPool, pages_N: jax.Array, slot: jax.Array, token: jax.Array) -> DeviceState:
    """Writes pages of all layers and one slot's newest token. Donates `state`."""
    pool = jax.tree.map(lambda array, new: array.at[:, pages_N].set(new, mode="drop"), state.pool, piece)
    return DeviceState(pool, state.last_tokens.at[slot].set(token))
