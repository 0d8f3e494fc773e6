"""How a block of KV lies in a VMEM buffer, and how one head's keys and values are read out of it.

A buffer holds pages as they lie in the pool, so that a page arrives in one copy. What is cheap to read depends on the
element: see `Words` and `HeadMajor`. `Plain` reads anything, slowly for small elements; it is also what the strict
interpreter can run of `Words`.

Next: `tpu_pages`, which fills the buffers.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128


@dataclasses.dataclass(frozen=True)
class Plain:
    """Pages and buffers [tokens, K, 2, h], read an element at a time."""

    def pool(self, kv_pages: jax.Array) -> jax.Array:
        """The pool in the order of the buffers; free where the pool already lies so in memory."""
        return kv_pages

    def shape(self, tokens: int, heads: int, h: int) -> tuple[int, ...]:
        """Shape of a buffer of `tokens` positions."""
        return tokens, heads, 2, h

    def page(self, buffer, page, page_tokens: int):
        """Where a buffer's `page`-th page goes."""
        return buffer.at[pl.ds(page * page_tokens, page_tokens)]

    def zero_outside(self, buffer, page, page_tokens: int, lo, hi) -> None:
        """Zeroes the tokens of a page that are not in `[lo, hi)`."""
        _zero_rows_outside(self.page(buffer, page, page_tokens), lo, hi)

    def load(self, buffer, head: int, seen):
        """Keys and values of one head, [tokens, h] each; `seen` [tokens, 1] are those that anyone looks at."""
        del seen  # the others were zeroed
        return buffer[:, head, 0, :], buffer[:, head, 1, :]


@dataclasses.dataclass(frozen=True)
class Words(Plain):
    """The same with 16-bit elements, read as 32-bit words: a token's key in the low half, its value in the high one.

    XLA tiles such a pool (2, 128) with the pair in one word, so a strided load of rows of words is a head's keys and
    values at once: a fifth of the instructions of `Plain`.
    """

    def zero_outside(self, buffer, page, page_tokens: int, lo, hi) -> None:
        """See `Plain.zero_outside`."""
        words = self._words(self.page(buffer, page, page_tokens))
        rows = words.shape[0] // page_tokens  # of one token
        _zero_rows_outside(words, lo * rows, hi * rows)

    def load(self, buffer, head: int, seen):
        """See `Plain.load`."""
        del seen
        tokens, heads = buffer.shape[:2]
        words = self._words(buffer)
        stride = words.shape[0] // tokens
        rows = range(head * stride // heads, (head + 1) * stride // heads)
        both = jnp.concatenate([words[pl.ds(row, tokens, stride), :] for row in rows], axis=1).astype(jnp.uint32)
        key, value = (pltpu.bitcast(half.astype(jnp.uint16), buffer.dtype) for half in (both, both >> 16))
        return key, value

    def _words(self, ref):
        """Rows of LANES words, in the order (token, head); a head of 256 has two rows."""
        tokens, heads, _, h = ref.shape
        lanes = min(h, LANES)
        return ref.bitcast(jnp.int32).reshape(tokens * heads * h // lanes, lanes)


@dataclasses.dataclass(frozen=True)
class HeadMajor(Plain):
    """Pages and buffers [K, 2, tokens, h]: 8-bit elements fill a word with four tokens of one head, and load whole.

    Four neighbours in the contract's order would be two heads' keys and values, which XLA never packs into a word.
    """

    def pool(self, kv_pages: jax.Array) -> jax.Array:
        """See `Plain.pool`."""
        return kv_pages.transpose(0, 2, 3, 1, 4)

    def shape(self, tokens: int, heads: int, h: int) -> tuple[int, ...]:
        """See `Plain.shape`."""
        return heads, 2, tokens, h

    def page(self, buffer, page, page_tokens: int):
        """See `Plain.page`."""
        return buffer.at[:, :, pl.ds(page * page_tokens, page_tokens)]

    def zero_outside(self, buffer, page, page_tokens: int, lo, hi) -> None:
        """Nothing: there are no 8-bit selects, so `load` does it after the conversion."""

    def load(self, buffer, head: int, seen):
        """See `Plain.load`; unseen integers stay, since no integer times a weight of 0 is anything but 0."""
        keys, values = (buffer[head, i].astype(jnp.float32) for i in (0, 1))
        if jnp.issubdtype(buffer.dtype, jnp.integer):
            return keys, values
        return jnp.where(seen, keys, 0.0), jnp.where(seen, values, 0.0)


def _zero_rows_outside(ref, lo, hi) -> None:
    row = lax.broadcasted_iota(jnp.int32, ref.shape, 0)
    ref[...] = jnp.where((row >= lo) & (row < hi), ref[...], jnp.zeros((), ref.dtype))
