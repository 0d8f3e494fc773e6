"""One step of inference as one compiled program: state and rows in, state and sampled tokens out.

`DeviceState` is what stays on the device between steps: KV pages, and the last token of every slot, so that a decode
step needs nothing from the host but integers. Each entry point donates it; the caller keeps only what is returned.

A step is a `Batch`: decode rows make one, prompt chunks make one, and two join into a mixed one. All of them go
through the same `advance`. Padding is part of the contract: a padding row writes no KV page, attends to nothing, and
leaves its token in the scratch slot (the last entry of `last_tokens`); a page id outside the pool is never written.

A request's tokens depend on its own seed, positions and logits, never on who shares its batch. Next: `decoder`, then
`attention` and `sampling`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int32, Key

from nanoserve.model import decoder
from nanoserve.model.attention import PagedAttention, Part, attention_for
from nanoserve.model.params import Params
from nanoserve.model.pool import KvPool, Slots, empty_pool, slots_of
from nanoserve.model.sampling import Sampler, SamplingParams, sample
from nanoserve.specs.models import ModelSpec


@struct.dataclass
class DeviceState:
    """What a running engine keeps on the device.

    Attributes:
      pool: pages of every layer, [L, P, p, K, 2, h].
      last_tokens: the newest token of each slot, and one scratch entry for padding rows.
    """

    pool: KvPool
    last_tokens: Int32[Array, " slots+1"]


@struct.dataclass
class DecodeRows:
    """Sequences that each take one more token. Padding rows have `active_B` False; their other fields are ignored.

    Attributes:
      slots_B: where each row's input token is, and where its new one goes.
      positions_B: KV positions already written, which is the position of the input token.
      page_table_BN: pages in order, covering `positions_B + 1` tokens (`positions_B + steps` for `decode_loop`).
      active_B: the row is a sequence, not padding.
      sampling: one entry per row.
    """

    slots_B: Int32[Array, " B"]
    positions_B: Int32[Array, " B"]
    page_table_BN: Int32[Array, "B N"]
    active_B: Bool[Array, " B"]
    sampling: SamplingParams


@struct.dataclass
class PrefillRows:
    """Prompt chunks laid end to end. Padding rows are empty chunks at the end; padding tokens follow the last chunk.

    Attributes:
      tokens_T: token ids; those of row r are `tokens_T[cu_q_lens[r]:cu_q_lens[r + 1]]`.
      positions_T: position of each token in its sequence.
      cu_q_lens: chunk boundaries, starting at 0.
      kv_lens_R: KV positions once the chunk is written, the position of a token sampled after it.
      page_table_RN: pages in order, covering `kv_lens_R` tokens.
      slots_R: where a sampled token goes.
      samples_R: the chunk ends its prompt. Where False the returned token means nothing and the slot is untouched.
      sampling: one entry per row.
    """

    tokens_T: Int32[Array, " T"]
    positions_T: Int32[Array, " T"]
    cu_q_lens: Int32[Array, " R+1"]
    kv_lens_R: Int32[Array, " R"]
    page_table_RN: Int32[Array, "R N"]
    slots_R: Int32[Array, " R"]
    samples_R: Bool[Array, " R"]
    sampling: SamplingParams


Stepped = tuple[DeviceState, Int32[Array, " R"], Float[Array, " R"]]  # state, tokens, and their log-probabilities


def init_state(spec: ModelSpec, *, pages: int, page_tokens: int, slots: int, dtype: DTypeLike) -> DeviceState:
    """An empty state.

    Args:
      spec: the model.
      pages, page_tokens: P and p of the pool.
      slots: most sequences at once; the scratch slot comes on top.
      dtype: of the KV pages.
    """
    pool = empty_pool(spec, pages=pages, page_tokens=page_tokens, dtype=dtype)
    return DeviceState(pool, jnp.zeros(slots + 1, jnp.int32))


def prefill_step(
    spec: ModelSpec,
    attention: PagedAttention,
    params: Params,
    state: DeviceState,
    prefill: PrefillRows,
    key: Key[Array, ""],
    *,
    sampler: Sampler = sample,
) -> Stepped:
    """Writes the chunks' KV and samples after each of them. Donates `state`.

    Returns:
      The new state, `tokens_R` and `logprobs_R`.
    """
    return advance(spec, attention, params, state, prefill_batch(attention, state, prefill), key, sampler)


def decode_step(
    spec: ModelSpec,
    attention: PagedAttention,
    params: Params,
    state: DeviceState,
    decode: DecodeRows,
    key: Key[Array, ""],
    *,
    sampler: Sampler = sample,
) -> Stepped:
    """Writes each row's last token and samples the next. Donates `state`.

    Returns:
      The new state, `tokens_B` and `logprobs_B`.
    """
    return advance(spec, attention, params, state, _decode_batch(attention, state, decode), key, sampler)


def mixed_step(
    spec: ModelSpec,
    attention: PagedAttention,
    params: Params,
    state: DeviceState,
    decode: DecodeRows,
    prefill: PrefillRows,
    key: Key[Array, ""],
    *,
    sampler: Sampler = sample,
) -> Stepped:
    """Decode rows and chunks in one pass over the weights. Donates `state`.

    Returns:
      The new state, `tokens` [B + R] and `logprobs` [B + R], decode rows first.
    """
    batch = _joined(_decode_batch(attention, state, decode), prefill_batch(attention, state, prefill))
    return advance(spec, attention, params, state, batch, key, sampler)


def decode_loop(
    spec: ModelSpec,
    attention: PagedAttention,
    params: Params,
    state: DeviceState,
    decode: DecodeRows,
    steps: Int32[Array, ""],
    key: Key[Array, ""],
    *,
    max_steps: int,
    sampler: Sampler = sample,
) -> tuple[DeviceState, Int32[Array, "max_steps B"], Float[Array, "max_steps B"]]:
    """`steps` decode steps without the host, the same tokens as `steps` calls of `decode_step`. Donates `state`.

    Args:
      spec, attention, params, state, decode, key: as for `decode_step`; `decode` describes the first step.
      steps: how many, at most `max_steps`. A traced value: changing it compiles nothing.
      max_steps: rows of the result; static. sampler: of `sampling`, what chooses tokens.

    Returns:
      The new state, tokens and log-probabilities; rows from `steps` on are zero.
    """

    def body(index, carry):
        state, tokens, logprobs = carry
        rows = dataclasses.replace(decode, positions_B=decode.positions_B + index)
        state, tokens_B, logprobs_B = decode_step(spec, attention, params, state, rows, key, sampler=sampler)
        return state, tokens.at[index].set(tokens_B), logprobs.at[index].set(logprobs_B)

    shape = (max_steps, decode.slots_B.shape[0])
    empty = (state, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    return jax.lax.fori_loop(0, jnp.minimum(steps, max_steps), body, empty)


class DecodeLoop(Protocol):
    """`decode_loop` bound to a model; `max_steps` is static, `steps` may be a Python or NumPy integer."""

    def __call__(
        self, params: Params, state: DeviceState, decode: DecodeRows, steps, key: Key[Array, ""], *, max_steps: int
    ) -> tuple[DeviceState, Int32[Array, "max_steps B"], Float[Array, "max_steps B"]]: ...


@dataclasses.dataclass(frozen=True)
class Steps:
    """The entry points of one model, jitted. Each donates its `state`; see the functions of the same names."""

    prefill: Callable[[Params, DeviceState, PrefillRows, Key[Array, ""]], Stepped]
    decode: Callable[[Params, DeviceState, DecodeRows, Key[Array, ""]], Stepped]
    mixed: Callable[[Params, DeviceState, DecodeRows, PrefillRows, Key[Array, ""]], Stepped]
    decode_loop: DecodeLoop


def make_steps(
    spec: ModelSpec,
    *,
    attention: PagedAttention | None = None,
    sampler: Sampler = sample,
    places: DeviceState | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Steps:
    """Binds the entry points to a model and jits them; nothing compiles until they are called or lowered.

    Args:
      spec: the model.
      attention: how to attend; `attention_for(spec)` where None.
      sampler: what chooses tokens: `sampling.sampler_for` of all requests that will be served.
      places: where each part of a state lives (`places.state_places`). Pins the returned state to it, so that
        donation always matches and a step never sees a layout it was not compiled for.
      compiler_options: of XLA, for the chips (`compat.compiler_options`).
    """
    attention = attention or attention_for(spec)

    def entry(step, **options):
        if places is not None:
            options["out_shardings"] = (places, places.last_tokens, places.last_tokens)
        bound = functools.partial(step, spec, attention, sampler=sampler)
        return jax.jit(bound, donate_argnames="state", compiler_options=dict(compiler_options or {}), **options)

    return Steps(
        prefill=entry(prefill_step),
        decode=entry(decode_step),
        mixed=entry(mixed_step),
        decode_loop=entry(decode_loop, static_argnames="max_steps"),
    )


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one step computes: T tokens through the layers, R rows through the head."""

    tokens_T: Int32[Array, " T"]
    positions_T: Int32[Array, " T"]
    slots: Slots  # where keys and values go
    parts: tuple[Part, ...]
    last_R: Int32[Array, " R"]  # index of the token that row r samples after
    slots_R: Int32[Array, " R"]
    sampling: SamplingParams


def advance(
    spec: ModelSpec,
    attention: PagedAttention,
    params: Params,
    state: DeviceState,
    batch: Batch,
    key: Key[Array, ""],
    sampler: Sampler = sample,
) -> Stepped:
    """Runs a batch through the model and samples its rows: what every step is. Donates `state`.

    Returns:
      The new state, `tokens_R` and `logprobs_R`.
    """
    tokens = batch.tokens_T, batch.positions_T
    attend = attention.attend(batch.slots, batch.parts)
    x_TD, pool = decoder.forward(spec, params, state.pool, *tokens, attend, attention.mesh)
    logits_RV = decoder.logits(spec, params, x_TD[batch.last_R])
    next_positions_R = batch.positions_T[batch.last_R] + 1
    tokens_R, logprobs_R = sampler(logits_RV, batch.sampling, next_positions_R, key)
    last_tokens = state.last_tokens.at[batch.slots_R].set(tokens_R)
    return DeviceState(pool, last_tokens), tokens_R, logprobs_R


def _decode_batch(attention: PagedAttention, state: DeviceState, rows: DecodeRows) -> Batch:
    kv_lens_B = jnp.where(rows.active_B, rows.positions_B + 1, 0)
    index_B = jnp.arange(rows.slots_B.shape[0])
    return Batch(
        tokens_T=state.last_tokens[rows.slots_B],
        positions_T=rows.positions_B,
        slots=slots_of(state.pool, rows.page_table_BN, index_B, rows.positions_B, rows.active_B),
        parts=(attention.decode(state.pool, rows.page_table_BN, kv_lens_B),),
        last_R=index_B,
        slots_R=_kept(state, rows.slots_B, rows.active_B),
        sampling=rows.sampling,
    )


def prefill_batch(attention: PagedAttention, state: DeviceState, rows: PrefillRows) -> Batch:
    """Prompt chunks as a batch that samples after the last token of each."""
    index_T = jnp.arange(rows.tokens_T.shape[0])
    # By comparing with all boundaries, which is one kernel; a search by halves is a loop of its own on a GPU.
    row_T = jnp.searchsorted(rows.cu_q_lens, index_T, side="right", method="compare_all") - 1
    real_T = index_T < rows.cu_q_lens[-1]
    chunks = rows.page_table_RN, rows.kv_lens_R, rows.cu_q_lens
    return Batch(
        tokens_T=rows.tokens_T,
        positions_T=rows.positions_T,
        slots=slots_of(state.pool, rows.page_table_RN, row_T, rows.positions_T, real_T),
        parts=(attention.prefill(state.pool, len(index_T), *chunks),),
        last_R=jnp.maximum(rows.cu_q_lens[1:] - 1, 0),
        slots_R=_kept(state, rows.slots_R, rows.samples_R),
        sampling=rows.sampling,
    )


def _joined(first: Batch, second: Batch) -> Batch:
    split = first.tokens_T.shape[0]

    def both(a, b):
        return jnp.concatenate([a, b])

    return Batch(
        tokens_T=both(first.tokens_T, second.tokens_T),
        positions_T=both(first.positions_T, second.positions_T),
        slots=jax.tree.map(both, first.slots, second.slots),
        parts=first.parts + second.parts,
        last_R=both(first.last_R, second.last_R + split),
        slots_R=both(first.slots_R, second.slots_R),
        sampling=jax.tree.map(both, first.sampling, second.sampling),
    )


def _kept(state: DeviceState, slots_R, keep_R) -> Int32[Array, " R"]:
    """Slots that take the sampled token; the scratch slot where it is discarded."""
    return jnp.where(keep_R, slots_R, state.last_tokens.shape[0] - 1)
