"""Choosing the next token: temperature, top-k, top-p, min-p, and keys that make a request independent of its batch.

The noise of a token is `fold_in(fold_in(key, seed), position)`, so a request draws the same token whatever its row and
neighbours. Filters keep or drop vocabulary entries in place (by threshold, so equal logits stand or fall together);
a row that uses no filter gets the same bits whether or not a neighbour does.

A program samples by one of two functions, chosen before it is compiled (`sampler_for`): `sample`, which serves any
rows, or `most_likely`, for runs where no request ever draws. The tokens are the same; but to find out at run time that
nobody draws takes a condition, for which a GPU outside of a CUDA graph waits until the host says where to go on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int32, Key, UInt32


@struct.dataclass
class SamplingParams:
    """One entry per row.

    Attributes:
      temperature_B: 0 takes the most likely token.
      top_k_B: keep the k most likely; 0 keeps all.
      top_p_B: then keep the fewest whose probabilities reach p; 1 keeps all.
      min_p_B: then keep those at least this share of the most likely one's probability; 0 keeps all.
      seed_B: the request's seed.
    """

    temperature_B: Float[Array, " B"]
    top_k_B: Int32[Array, " B"]
    top_p_B: Float[Array, " B"]
    min_p_B: Float[Array, " B"]
    seed_B: UInt32[Array, " B"]


def greedy(rows: int) -> SamplingParams:
    """Sampling parameters of `rows` rows that each take the most likely token."""
    return SamplingParams(
        temperature_B=jnp.zeros(rows, jnp.float32),
        top_k_B=jnp.zeros(rows, jnp.int32),
        top_p_B=jnp.ones(rows, jnp.float32),
        min_p_B=jnp.zeros(rows, jnp.float32),
        seed_B=jnp.zeros(rows, jnp.uint32),
    )


@jax.named_scope("sample")
def sample(
    logits_BV: Float[Array, "B V"], params: SamplingParams, positions_B: Int32[Array, " B"], key: Key[Array, ""]
) -> tuple[Int32[Array, " B"], Float[Array, " B"]]:
    """Draws one token per row.

    Args:
      logits_BV: float32.
      params: how each row samples.
      positions_B: position of the token being drawn.
      key: the run's key; not consumed, every step may pass the same one.

    Returns:
      Tokens, and their log-probabilities under the model (before temperature and filters).
    """
    greedy_B = _argmax(logits_BV)
    tokens_B = jax.lax.cond(
        jnp.any(params.temperature_B > 0),
        lambda: jnp.where(params.temperature_B > 0, _draw(logits_BV, params, positions_B, key), greedy_B),
        lambda: greedy_B,
    )
    return tokens_B, _logprobs(logits_BV, tokens_B)


@jax.named_scope("sample")
def most_likely(
    logits_BV: Float[Array, "B V"], params: SamplingParams, positions_B: Int32[Array, " B"], key: Key[Array, ""]
) -> tuple[Int32[Array, " B"], Float[Array, " B"]]:
    """The most likely token of every row, whatever `params` ask for: what `sample` gives rows of temperature 0.

    Arguments and result as for `sample`, of which all but the logits are ignored.
    """
    del params, positions_B, key
    tokens_B = _argmax(logits_BV)
    return tokens_B, _logprobs(logits_BV, tokens_B)


Sampler = Callable[
    [Float[Array, "B V"], SamplingParams, Int32[Array, " B"], Key[Array, ""]],
    tuple[Int32[Array, " B"], Float[Array, " B"]],
]


def sampler_for(temperatures: np.ndarray | float) -> Sampler:
    """The cheapest function that is right for requests of these temperatures."""
    return sample if np.any(np.asarray(temperatures) > 0) else most_likely


def keep(logits_BV: Float[Array, "B V"], params: SamplingParams) -> Float[Array, "B V"]:
    """Logits with everything that top-k, top-p and min-p drop set to -inf; the most likely token always stays.

    Args:
      logits_BV: already divided by the temperature.
      params: the filters.
    """
    filters = jnp.any((params.top_k_B > 0) | (params.top_p_B < 1))
    kept_BV = jax.lax.cond(filters, lambda: _top_k_top_p(logits_BV, params), lambda: logits_BV)
    least_B = jnp.max(logits_BV, axis=-1) + jnp.log(params.min_p_B)  # log 0 = -inf keeps all
    return jnp.where(kept_BV >= least_B[:, None], kept_BV, -jnp.inf)


def _argmax(logits_BV) -> Int32[Array, " B"]:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def _logprobs(logits_BV, tokens_B) -> Float[Array, " B"]:
    """Log-probabilities of the tokens under the model."""
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def _draw(logits_BV, params: SamplingParams, positions_B, key) -> Int32[Array, " B"]:
    temperature_B = jnp.where(params.temperature_B > 0, params.temperature_B, 1.0)
    below_BV = logits_BV - jnp.max(
        logits_BV, axis=-1, keepdims=True
    )  # at most 0, so a tiny temperature cannot give inf
    kept_BV = keep(below_BV / temperature_B[:, None], params)

    def draw(seed, position, logits_V):
        return jax.random.categorical(jax.random.fold_in(jax.random.fold_in(key, seed), position), logits_V)

    return jax.vmap(draw)(params.seed_B, positions_B, kept_BV).astype(jnp.int32)


def _top_k_top_p(logits_BV, params: SamplingParams) -> Float[Array, "B V"]:
    """Both filters: top-k first, then top-p of what it kept."""
    order_BV = _order(logits_BV)
    k_B = jnp.where(params.top_k_B > 0, params.top_k_B, jnp.inf)
    kept_BV = order_BV >= _least_kept(order_BV, jnp.ones_like(logits_BV), k_B)[:, None]
    probs_BV = jax.nn.softmax(jnp.where(kept_BV, logits_BV, -jnp.inf), axis=-1)
    p_B = jnp.where(params.top_p_B < 1, params.top_p_B, jnp.inf)
    kept_BV &= order_BV >= _least_kept(order_BV, probs_BV, p_B)[:, None]
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


def _order(x: Float[Array, "..."]) -> Int32[Array, "..."]:
    """Integers in the order of float32 numbers: the bits themselves, those of negative numbers turned around."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _least_kept(
    order_BV: Int32[Array, "B V"], weights_BV: Float[Array, "B V"], limit_B: Float[Array, " B"]
) -> Int32[Array, " B"]:
    """The smallest number of each row above which less than `limit` of the weight lies.

    Found by halving the 32-bit integers: exact, and without sorting the vocabulary, which took most of the TPU
    compiler's time for a decode step.
    """

    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = (low_B & high_B) + ((low_B ^ high_B) >> 1)  # their mean, without overflow
        above_B = jnp.sum(jnp.where(order_BV > middle_B[:, None], weights_BV, 0.0), axis=-1)
        few_B = above_B < limit_B
        return jnp.where(few_B, low_B, middle_B + 1), jnp.where(few_B, middle_B, high_B)

    limits = jnp.iinfo(jnp.int32)
    rows = order_BV.shape[0]
    return jax.lax.fori_loop(0, 32, halve, (jnp.full(rows, limits.min), jnp.full(rows, limits.max)))[1]
