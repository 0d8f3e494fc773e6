"""What a model says at every position of given tokens: how precisions are compared, free of what each would generate.

The tokens are one prompt chunk, whose keys and values go through the pages as in a step, so KV of fewer bits counts.
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


@functools.partial(jax.jit, static_argnames=("spec", "kv_dtype"))
def teacher_forced(
    spec: ModelSpec, params: Params, tokens_T: Int32[Array, " T"], kv_dtype: DTypeLike
) -> Float[Array, "T V"]:
    """Float32 logits of the token that follows each of `tokens_T`; padding at the end changes nothing before it.

    Args:
      spec, params: the model, on one chip. tokens_T: token ids, from position 0. kv_dtype: of the pages.
    """
    T = tokens_T.shape[0]
    pages, positions_T = -(-T // _PAGE_TOKENS), jnp.arange(T)
    pool = empty_pool(spec, pages=pages, page_tokens=_PAGE_TOKENS, dtype=kv_dtype)
    page_table_RN = jnp.arange(pages)[None]
    slots = slots_of(pool, page_table_RN, jnp.zeros_like(positions_T), positions_T, jnp.ones(T, bool))
    attention = attention_for(spec)
    part = attention.prefill(pool, T, page_table_RN, jnp.array([T]), jnp.array([0, T]))
    x_TD, _ = decoder.forward(spec, params, pool, tokens_T, positions_T, attention.attend(slots, [part]))
    return decoder.logits(spec, params, x_TD)
