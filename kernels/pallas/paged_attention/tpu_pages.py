"""The copies of pages from HBM into two VMEM buffers, a block at a time.

`start` and `wait` of one block name the same pages: those that hold something to be seen, and no others.

Next: `tpu_kernel`, which decides when.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.pallas.paged_attention.tpu_buffers import Plain
from kernels.pallas.paged_attention.tpu_work import Field


@dataclasses.dataclass(frozen=True)
class Item:
    """A view of one item in the work list."""

    work: jax.Ref  # [cores * fields * items] in SMEM
    core: jax.Array
    items: int | jax.Array
    index: jax.Array

    def __getitem__(self, field: Field) -> jax.Array:
        return self.work[(self.core * len(Field) + field) * self.items + self.index]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pages:
    """Pages of the pool, and the buffers that they are copied to.

    Attributes:
      page_tokens, block_pages, table_pages: p, pages in a buffer, and N.
      order: how KV lies in a page and in a buffer.
      page_table, first_page: [rows * N], and what to add to each entry, [1]; in SMEM.
      pool: KV in HBM, [P, ...], and its scales [P, 2, K, p] if it has any.
      buffers: two buffers of a block for each array of the pool.
      arrived: a DMA semaphore for each of the two.
    """

    page_tokens: int
    block_pages: int
    table_pages: int
    order: Plain
    page_table: jax.Ref
    first_page: jax.Ref
    pool: tuple[jax.Ref, ...]
    buffers: tuple[jax.Ref, ...]
    arrived: jax.Ref

    @property
    def block_tokens(self) -> int:
        """KV positions in a buffer."""
        return self.block_pages * self.page_tokens

    def first_block(self, item: Item):
        """The first block that the item sees something of."""
        return lax.div(item[Field.LO], self.block_tokens)

    def end_block(self, item: Item):
        """One past the last block that the item sees something of; not above `first_block` where there is none."""
        return jnp.where(item[Field.LO] < item[Field.HI], pl.cdiv(item[Field.HI], self.block_tokens), 0)

    def start(self, item: Item, block, buffer) -> None:
        """Starts a block's copies; the caller has checked that nobody needs the buffer."""
        self._each_copy(item, block, buffer, lambda copy: copy.start())

    def wait(self, item: Item, block, buffer) -> None:
        """Returns when a block's copies have arrived."""
        self._each_copy(item, block, buffer, lambda copy: copy.wait())

    def _each_copy(self, item: Item, block, buffer, act) -> None:
        begin = block * self.block_pages
        row = item[Field.ROW] * self.table_pages + begin

        def one(page):
            number = self.first_page[0] + self.page_table[row + page]
            targets = [self.order.page(self.buffers[0].at[buffer], page, self.page_tokens)]
            targets += [scales.at[buffer, page] for scales in self.buffers[1:]]
            for source, target in zip(self.pool, targets, strict=True):
                act(pltpu.make_async_copy(source.at[number], target, self.arrived.at[buffer]))

        first = jnp.maximum(lax.div(item[Field.LO], self.page_tokens) - begin, 0)
        end = jnp.minimum(pl.cdiv(item[Field.HI], self.page_tokens) - begin, self.block_pages)
        every = end - first == self.block_pages

        # A loop costs several times the copy that it starts; most blocks are full, and for them it is unrolled.
        @pl.when(every)
        def _():
            for page in range(self.block_pages):
                one(page)

        @pl.when(~every)
        def _():
            pl.loop(first, end)(one)

    def zero_unseen(self, item: Item, block, buffer) -> None:
        """Zeroes, page by page, what the item does not see of a block: most blocks have no such page."""
        begin = block * self.block_tokens

        @pl.when((item[Field.LO] > begin) | (item[Field.HI] < begin + self.block_tokens))
        def _():
            @pl.loop(0, self.block_pages)
            def _(page):
                lo, hi = (item[field] - begin - page * self.page_tokens for field in (Field.LO, Field.HI))

                @pl.when((lo > 0) | (hi < self.page_tokens))
                def _():
                    self.order.zero_outside(self.buffers[0].at[buffer], page, self.page_tokens, lo, hi)

    def load(self, item: Item, block, buffer, head: int):
        """Keys and values of one head, [block_tokens, h] each, and their scales [1, block_tokens] each, or None.

        Whatever the item does not see is finite, and zero where it has to be for that.
        """
        keys, values = self.order.load(self.buffers[0].at[buffer], head, self._seen(item, block, axis=0))
        if len(self.buffers) == 1:
            return keys, values, None, None
        seen = self._seen(item, block, axis=1)
        return keys, values, *(jnp.where(seen, self._scales(buffer, head, i), 0.0) for i in (0, 1))

    def _seen(self, item: Item, block, axis: int):
        """Which positions of a block the item sees, along one axis of two."""
        shape = (self.block_tokens, 1) if axis == 0 else (1, self.block_tokens)
        position = block * self.block_tokens + lax.broadcasted_iota(jnp.int32, shape, axis)
        return (position >= item[Field.LO]) & (position < item[Field.HI])

    def _scales(self, buffer, head: int, which: int):
        """Scales of a head's keys (0) or values (1), one for each position."""
        pages = [self.buffers[1][buffer, page, which, head : head + 1, :] for page in range(self.block_pages)]
        return jnp.concatenate(pages, axis=1)
