"""Speculative decoding on the device: a step that samples at several positions of a row, and a draft model's loop.

**Lossless, token for token.** The target samples a token at every position that a row brings, with the request's own
key, `fold_in(fold_in(key, seed), position)`, exactly as a decode step would at that position. A drafted token is kept
if and only if it equals the token sampled before it. So a request gets the tokens it gets without speculation, greedy
or sampled, whatever was drafted; this is stronger than the equality in distribution of rejection sampling, and takes no
correction step. (Equal up to rounding, like any two steps of other shapes.)

**Accepted often.** The draft model draws with the same key at the same position, so both models add the same Gumbel
noise to their logits. Where their distributions are close, the same token mostly wins in both: the chance that they
differ is at most `2 d / (1 + d)` for total variation distance d, where independent draws would differ far more often.

A verifying row is a chunk of 1 + j tokens that attends like a prompt chunk, so prompt chunks stand beside it in one
call. KV of tokens that turn out wrong is written all the same: it lies past the row's length, where nobody attends,
and the row's next step writes over it first.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023 (verification in one step);
Daliri et al., "Coupling without Communication and Drafter-Invariant Speculative Decoding", 2024 (Gumbel
noise that drafter and target share, and the bound). Next: `step`, whose parts these are; `executors.drafting`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int32, Key

from nanoserve.model.attention import PagedAttention, attention_for
from nanoserve.model.params import Params
from nanoserve.model.sampling import SamplingParams
from nanoserve.model.step import DecodeRows, DeviceState, PrefillRows, Stepped, advance, decode_step, prefill_batch
from nanoserve.specs.models import ModelSpec


@struct.dataclass
class VerifyRows:
    """Rows of one or more tokens each, sampled after as many of their tokens as is asked.

    Attributes:
      chunks: the rows, prompt chunks among them; whether and how they sample by themselves is ignored.
      sampled_S: indices of tokens, in `chunks.tokens_T`, that a token is sampled after. Those of padding mean nothing.
      sampling: one entry per sample.
    """

    chunks: PrefillRows
    sampled_S: Int32[Array, " S"]
    sampling: SamplingParams


@struct.dataclass
class DraftRows:
    """Sequences that a draft model goes on with.

    Attributes:
      decode: their slots, positions and pages, as for a decode step.
      tokens_B: their newest tokens, which the target chose: KV not yet written.
      drafts_B: how many tokens are wanted of each; its pages cover one position more.
    """

    decode: DecodeRows
    tokens_B: Int32[Array, " B"]
    drafts_B: Int32[Array, " B"]


def verify_step(
    spec: ModelSpec,
    attention: PagedAttention,
    params: Params,
    state: DeviceState,
    rows: VerifyRows,
    key: Key[Array, ""],
) -> Stepped:
    """Writes the KV of all rows and samples after every token that is asked for. Donates `state`.

    Last tokens of slots stay what they were: which of the samples counts is decided on the host.

    Returns:
      The new state, `tokens_S` and `logprobs_S`.
    """
    nowhere = state.last_tokens.shape[0] - 1
    batch = dataclasses.replace(
        prefill_batch(attention, state, rows.chunks),
        last_R=rows.sampled_S,
        slots_R=jnp.full_like(rows.sampled_S, nowhere),
        sampling=rows.sampling,
    )
    return advance(spec, attention, params, state, batch, key)


def draft_loop(
    spec: ModelSpec,
    attention: PagedAttention,
    params: Params,
    state: DeviceState,
    rows: DraftRows,
    key: Key[Array, ""],
    *,
    max_drafts: int,
) -> tuple[DeviceState, Int32[Array, "max_drafts B"]]:
    """A draft model's next tokens of every row, one after the other, in one call. Donates `state`.

    A last pass writes the KV of a row's last drafted token, so that the draft model's pages are complete wherever the
    target's are, even where all is accepted. A row that wants fewer tokens than others is padding after its own.

    Args:
      spec, attention, params, state: of the draft model; its pages have the ids of the target's.
      rows: which sequences. key: the target's, so that both draw with the same noise.
      max_drafts: rows of the result; static.

    Returns:
      The new state, and tokens; those beyond a row's `drafts_B` mean nothing.
    """
    decode = rows.decode
    state = dataclasses.replace(state, last_tokens=state.last_tokens.at[decode.slots_B].set(rows.tokens_B))

    def body(index, carry):
        state, drafted = carry
        active_B = decode.active_B & (index <= rows.drafts_B)
        now = dataclasses.replace(decode, positions_B=decode.positions_B + index, active_B=active_B)
        state, tokens_B, _ = decode_step(spec, attention, params, state, now, key)
        return state, drafted.at[index].set(tokens_B, mode="drop")

    passes = 1 + jnp.minimum(jnp.max(rows.drafts_B), max_drafts)
    empty = jnp.zeros((max_drafts, decode.slots_B.shape[0]), jnp.int32)
    return jax.lax.fori_loop(0, passes, body, (state, empty))


class DraftLoop(Protocol):
    """`draft_loop` bound to a model; `max_drafts` is static."""

    def __call__(
        self, params: Params, state: DeviceState, rows: DraftRows, key: Key[Array, ""], *, max_drafts: int
    ) -> tuple[DeviceState, Int32[Array, "max_drafts B"]]: ...


@dataclasses.dataclass(frozen=True)
class SpeculativeSteps:
    """The entry points of one model, jitted: `verify` of a target, `draft` of a draft model. Each donates `state`."""

    verify: Callable[[Params, DeviceState, VerifyRows, Key[Array, ""]], Stepped]
    draft: DraftLoop


def make_speculative_steps(
    spec: ModelSpec,
    *,
    attention: PagedAttention | None = None,
    places: DeviceState | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> SpeculativeSteps:
    """Binds the entry points to a model and jits them; arguments as for `step.make_steps`."""
    attention = attention or attention_for(spec)

    def entry(step, returned: int, **options):
        if places is not None:
            options["out_shardings"] = (places, *[places.last_tokens] * returned)
        bound = functools.partial(step, spec, attention)
        return jax.jit(bound, donate_argnames="state", compiler_options=dict(compiler_options or {}), **options)

    return SpeculativeSteps(
        verify=entry(verify_step, returned=2), draft=entry(draft_loop, returned=1, static_argnames="max_drafts")
    )
