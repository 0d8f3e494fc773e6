"""Writing new keys and values to 8-bit pages on TPU, and their scales: what surrounds them is read and written back.

Four tokens of a head share a word of such a page, and no copy can cut a word. The least that it can cut out of a page
is a window of 32 tokens (a whole page where p is no multiple of it), and out of the scales a page, whose tokens lie
along the lanes. So tokens are written a run at a time: those next to each other in the call that go to one window.

Invariants: several runs are on their way at once, so no two runs share a window, which holds because the tokens of one
page come together and in order (`api.write_kv`); a buffer is filled again only after the copy out of it was waited for;
elements are moved as bits, never as numbers, so that what surrounds a token stays as it was, NaN included.

Next: `tpu_write` for wider elements, `tpu_buffers.HeadMajor` for the order of a page.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, ArrayLike, Float, Int32, Num

from kernels.pallas.paged_attention import tpu_write
from kernels.pallas.paged_attention.tpu_buffers import LANES

WINDOW_TOKENS = 32  # rows of a tile of 8-bit elements
IN_FLIGHT = 8  # runs: enough to hide the way there and back
BUFFER_BYTES = 4 * 2**20  # for windows and their new tokens: a quarter of what a kernel may use of VMEM


def write(
    kv_pages: Num[Array, "P p K 2 h"],
    kv_TK2h: Num[Array, "T K 2 h"],
    pages_T: Int32[Array, " T"],
    offsets_T: Int32[Array, " T"],
    first_page: ArrayLike,
    kv_scales: Float[Array, "P p K 2"] | None = None,
    scales_TK2: Float[Array, "T K 2"] | None = None,
    *,
    interpret: Any = False,
) -> tuple[Num[Array, "P p K 2 h"], Float[Array, "P p K 2"] | None]:
    """See `api.write_kv`; pages of 8-bit elements.

    Args:
      kv_pages, kv_TK2h, pages_T, offsets_T, first_page, kv_scales, scales_TK2: see there.
      interpret: what `pallas_call` takes; `compat.tpu_interpreter()` to run on a CPU.
    """
    P, p, K, _, h = kv_pages.shape
    window = WINDOW_TOKENS if p % WINDOW_TOKENS == 0 else p
    run_bytes = K * 2 * window * h * (kv_pages.dtype.itemsize + 4)
    slots = max(2, min(IN_FLIGHT, BUFFER_BYTES // run_bytes))
    new = (lax.bitcast_convert_type(kv_TK2h, jnp.int8).astype(jnp.int32),)
    new_specs = (pl.BlockSpec(memory_space=pl.ANY),)
    pool = (kv_pages.transpose(0, 2, 3, 1, 4),)
    buffers = (pltpu.VMEM((slots, K, 2, window, h), kv_pages.dtype), pltpu.VMEM((slots, window, K, 2, h), jnp.int32))
    if kv_scales is not None:
        new += (_token_rows(scales_TK2, p),)
        new_specs += (pl.BlockSpec(memory_space=pltpu.VMEM),)
        pool += (kv_scales.transpose(0, 3, 2, 1),)
        buffers += (pltpu.VMEM((slots, 2, K, p), kv_scales.dtype),)
    in_hbm = tuple(pl.BlockSpec(memory_space=pl.ANY) for _ in pool)
    per_token = pltpu.SMEM(pages_T.shape, jnp.int32)
    ((pages, *scales),) = pl.pallas_call(
        functools.partial(_kernel, window=window),
        out_shape=[tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in pool)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(1,),
            in_specs=[new_specs, in_hbm],
            out_specs=[in_hbm],
            scratch_shapes=[(per_token, per_token), buffers, *[pltpu.SemaphoreType.DMA((slots,))] * 2],
        ),
        input_output_aliases={2 + len(new) + i: i for i in range(len(pool))},
        cost_estimate=cost(pool, len(pages_T), window),
        interpret=interpret,
        name="write_kv",
    )(tpu_write.within(pages_T + first_page, P), offsets_T, new, pool)
    return pages.transpose(0, 3, 1, 2, 4), scales[0].transpose(0, 3, 2, 1) if scales else None


def cost(pool: tuple[jax.Array, ...], tokens: int, window: int) -> pl.CostEstimate:
    """What the call costs if no two tokens share a window, as in decode.

    Args:
      pool: pages [P, K, 2, p, h], and scales [P, 2, K, p] if there are any.
      tokens: T.
      window: tokens that are moved for one.
    """
    _, K, _, p, h = pool[0].shape
    moved = 2 * window * pl.cdiv(h, LANES) * LANES + 4 * h  # there and back, and the token's own elements
    if len(pool) > 1:
        moved += 2 * 4 * pl.cdiv(p, LANES) * LANES
    return pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=tokens * 2 * K * moved)


def _token_rows(scales_TK2, page_tokens: int):
    """New scales a token a row, [2 K] in whole lanes, with as many rows around them as `_Scales.put` may read."""
    T, K, _ = scales_TK2.shape
    rows = scales_TK2.transpose(0, 2, 1).reshape(T, 2 * K)
    return jnp.pad(rows, ((page_tokens, page_tokens + LANES), (0, -2 * K % LANES)))


def _kernel(
    pages,  # [T] in SMEM; negative: written nowhere
    offsets,  # [T] in SMEM
    new,  # bits of the elements [T, K, 2, h] i32 in HBM; scales, as `_token_rows` lays them, in VMEM
    _,  # the pool, which `out` is
    out,  # [P, K, 2, p, h] and [P, 2, K, p] in HBM
    found,  # two of [T] in SMEM: the first token of each run, and the one after its last
    buffers,  # for each slot a window [K, 2, window, h], its new tokens [window, K, 2, h], a page of scales [2, K, p]
    fetched,  # a DMA semaphore for each slot
    written,  # a DMA semaphore for each slot
    *,
    window: int,
):
    """All windows of keys and values, then all pages of scales."""
    _rewrite(_Elements(new[0], out[0], *buffers[:2]), Runs(pages, offsets, *found, window=window), fetched, written)
    if len(out) > 1:
        part = _Scales(new[1], out[1], buffers[2])
        _rewrite(part, Runs(pages, offsets, *found, window=out[1].shape[3]), fetched, written)


def _rewrite(part, runs: "Runs", fetched, written) -> None:
    """Every run through the slots in turn: fetched, given its new tokens half a round later, gone after a whole one."""
    slots = fetched.shape[0]
    count = runs.find()

    def at(index, act):
        @pl.when((index >= 0) & (index < count))
        def _():
            act(runs[index], lax.rem(index, slots))

    def fetch(run, slot):
        part.each_fetch(run, slot, fetched.at[slot], lambda copy: copy.start())

    def put(run, slot):
        part.each_fetch(run, slot, fetched.at[slot], lambda copy: copy.wait())
        part.put(run, slot)
        part.write_back(run, slot, written.at[slot]).start()

    @pl.loop(0, count + slots)
    def _(step):
        at(step - slots, lambda run, slot: part.write_back(run, slot, written.at[slot]).wait())
        at(step, fetch)
        at(step - slots // 2, put)


class Run(NamedTuple):
    """Tokens next to each other in the call that go to one window of a page.

    Attributes:
      page, start: where the window is, its offset in the page being a multiple of its length.
      lo, hi: the part of the window that is new.
      token: what goes to `lo`.
    """

    page: jax.Array
    start: jax.Array
    lo: jax.Array
    hi: jax.Array
    token: jax.Array


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a call, found by a walk over its tokens.

    Attributes:
      pages, offsets: of each token, in SMEM.
      first, end: tokens of each run, in SMEM, which `find` fills.
      window: tokens of a window.
    """

    pages: jax.Ref
    offsets: jax.Ref
    first: jax.Ref
    end: jax.Ref
    window: int

    def find(self):
        """How many runs there are."""

        def visit(token, found):
            count, page_before, window_before = found
            page, window = self.pages[token], lax.div(self.offsets[token], self.window)
            begins = (page >= 0) & ((page != page_before) | (window != window_before))
            count += begins.astype(jnp.int32)

            @pl.when(begins)
            def _():
                self.first[count - 1] = token

            @pl.when(page >= 0)
            def _():
                self.end[count - 1] = token + 1

            return count, page, window

        none = jnp.int32(-1)
        return lax.fori_loop(0, self.pages.shape[0], visit, (jnp.int32(0), none, none))[0]

    def __getitem__(self, index) -> Run:
        token = self.first[index]
        lo = lax.rem(self.offsets[token], self.window)
        start = pl.multiple_of(self.offsets[token] - lo, self.window)
        return Run(self.pages[token], start, lo, lo + self.end[index] - token, token)


@dataclasses.dataclass(frozen=True)
class _Elements:
    """Keys and values, a window of each head; see `_kernel` for what the refs are."""

    new: jax.Ref
    pool: jax.Ref
    windows: jax.Ref
    tokens: jax.Ref

    def each_fetch(self, run: Run, slot, arrived, act) -> None:
        """The copies into a slot: a window, and its new tokens to where they go in it."""
        act(pltpu.make_async_copy(self._place(run), self.windows.at[slot], arrived))

        @pl.loop(run.lo, run.hi)
        def _(row):
            act(pltpu.make_async_copy(self.new.at[run.token + row - run.lo], self.tokens.at[slot, row], arrived))

    def put(self, run: Run, slot) -> None:
        """Replaces rows of the window; there are no 8-bit selects."""
        _, heads, _, rows, h = self.windows.shape
        row = lax.broadcasted_iota(jnp.int32, (rows, h), 0)
        is_new = (row >= run.lo) & (row < run.hi)
        for head in range(heads):
            for which in (0, 1):
                old = pltpu.bitcast(self.windows[slot, head, which], jnp.int8).astype(jnp.int32)
                bits = jnp.where(is_new, self.tokens[slot, :, head, which, :], old).astype(jnp.int8)
                self.windows[slot, head, which] = pltpu.bitcast(bits, self.windows.dtype)

    def write_back(self, run: Run, slot, left):
        """The copy out of a slot."""
        return pltpu.make_async_copy(self.windows.at[slot], self._place(run), left)

    def _place(self, run: Run):
        return self.pool.at[run.page, :, :, pl.ds(run.start, self.windows.shape[3])]


@dataclasses.dataclass(frozen=True)
class _Scales:
    """Scales, a page of all heads; see `_kernel` for what the refs are."""

    new: jax.Ref
    pool: jax.Ref
    pages: jax.Ref

    def each_fetch(self, run: Run, slot, arrived, act) -> None:
        """The copy into a slot."""
        act(pltpu.make_async_copy(self.pool.at[run.page], self.pages.at[slot], arrived))

    def put(self, run: Run, slot) -> None:
        """Replaces lanes of the page by the rows that hold its new tokens, which end up in the run's lanes."""
        _, _, heads, lanes = self.pages.shape
        rows = pl.cdiv(lanes, LANES) * LANES
        new = self.new[pl.ds(lanes + run.token - run.lo, rows), :].T
        lane = lax.broadcasted_iota(jnp.int32, (heads, lanes), 1)
        is_new = (lane >= run.lo) & (lane < run.hi)
        for which in (0, 1):
            mine = new[which * heads : (which + 1) * heads, :lanes]
            self.pages[slot, which] = jnp.where(is_new, mine, self.pages[slot, which])

    def write_back(self, run: Run, slot, left):
        """The copy out of a slot."""
        return pltpu.make_async_copy(self.pages.at[slot], self.pool.at[run.page], left)
