"""What a model says at every position of given tokens: how precisions are compared, free of what each would generate.

The tokens are one prompt chunk, or are decoded one after the other; their keys and values go through the pages as in a
step, so KV of fewer bits counts, and so does the implementation of attention.
Next: `step` (how an engine runs), `experiments/quality.py` (who compares).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int32

from nanoserve.model import decoder
from nanoserve.model.attention import attention_for
from nanoserve.model.params import Params
from nanoserve.model.pool import empty_pool, slots_of
from nanoserve.specs.models import ModelSpec

_PAGE_TOKENS = 16


@functools.partial(jax.jit, static_argnames=("spec", "kv_dtype", "implementation"))
def teacher_forced(
    spec: ModelSpec, params: Params, tokens_T: Int32[Array, " T"], kv_dtype: DTypeLike, implementation: str = "xla"
) -> Float[Array, "T V"]:
    """Float32 logits of the token that follows each of `tokens_T`; padding at the end changes nothing before it.

    Args:
      spec, params: the model, on one chip. tokens_T: token ids, from position 0.
      kv_dtype: of the pages. implementation: of paged attention, which serves the model's shapes.
    """
    T = tokens_T.shape[0]
    pages, positions_T = -(-T // _PAGE_TOKENS), jnp.arange(T)
    pool = empty_pool(spec, pages=pages, page_tokens=_PAGE_TOKENS, dtype=kv_dtype)
    page_table_RN = jnp.arange(pages)[None]
    slots = slots_of(pool, page_table_RN, jnp.zeros_like(positions_T), positions_T, jnp.ones(T, bool))
    attention = attention_for(spec, implementation)
    part = attention.prefill(pool, T, page_table_RN, jnp.array([T]), jnp.array([0, T]))
    x_TD, _ = decoder.forward(spec, params, pool, tokens_T, positions_T, attention.attend(slots, [part]))
    return decoder.logits(spec, params, x_TD)


@functools.partial(jax.jit, static_argnames=("spec", "kv_dtype", "implementation"))
def teacher_forced_decoding(
    spec: ModelSpec, params: Params, tokens_BT: Int32[Array, "B T"], kv_dtype: DTypeLike, implementation: str = "xla"
) -> Float[Array, "B T-1"]:
    """Log-probabilities of the tokens that follow, one decode step of all rows after the other.

    Args:
      tokens_BT: token ids of rows, from position 0; padding at a row's end changes nothing before it.
      spec, params, kv_dtype, implementation: as for `teacher_forced`.

    Returns:
      Of token t + 1 after those up to t, in float32.
    """
    B, T = tokens_BT.shape
    row_pages, index_B = -(-T // _PAGE_TOKENS), jnp.arange(B)
    pool = empty_pool(spec, pages=B * row_pages, page_tokens=_PAGE_TOKENS, dtype=kv_dtype)
    page_table_BN = jnp.arange(B * row_pages).reshape(B, row_pages)
    attention = attention_for(spec, implementation)

    def step(pool, tokens):
        position, tokens_B, next_B = tokens
        positions_B = jnp.full(B, position)
        slots = slots_of(pool, page_table_BN, index_B, positions_B, jnp.ones(B, bool))
        part = attention.decode(pool, page_table_BN, positions_B + 1)
        x_BD, pool = decoder.forward(spec, params, pool, tokens_B, positions_B, attention.attend(slots, [part]))
        return pool, jax.nn.log_softmax(decoder.logits(spec, params, x_BD))[index_B, next_B]

    _, logprobs_TB = jax.lax.scan(step, pool, (jnp.arange(T - 1), tokens_BT[:, :-1].T, tokens_BT[:, 1:].T))
    return logprobs_TB.T
