"""The work list covers every query once, in an order that the kernel's prefetching can follow."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np

from kernels.pallas.paged_attention import tpu_work
from kernels.pallas.paged_attention.tpu_work import Field

TILE, TILES = 4, 6
chunks = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=3, max_size=3)


def prefill_items(chunks, cores, window):
    """The work list of chunks given as (past, new), as one dict of fields for each item, core by core."""
    q_lens = [new for _, new in chunks]
    kv_lens = np.array([past + new if new else 0 for past, new in chunks], np.int32)
    cu = np.cumsum([0, *q_lens]).astype(np.int32)
    work = np.asarray(tpu_work.prefill_work(jnp.asarray(kv_lens), jnp.asarray(cu), TILES, TILE, cores, window))
    return [[dict(zip(Field, item, strict=True)) for item in core.T] for core in work], kv_lens, cu


@hypothesis.given(chunks=chunks, cores=st.sampled_from([1, 2]), window=st.sampled_from([None, 1, 3]))
@hypothesis.settings(max_examples=40)
def test_every_token_belongs_to_one_item_that_spans_what_it_sees(chunks, cores, window):
    lists, kv_lens, cu = prefill_items(chunks, cores, window)
    owners = {}
    for item in (item for core in lists for item in core):
        positions = []
        for token in range(item[Field.FROM], item[Field.TO]):
            index = item[Field.TILE] * TILE + token
            assert index not in owners
            owners[index] = item[Field.ROW]
            positions.append(token + item[Field.SHIFT])
            assert positions[-1] == kv_lens[item[Field.ROW]] - cu[item[Field.ROW] + 1] + index
        if positions:
            first = 0 if window is None else max(0, positions[0] - window + 1)
            assert (item[Field.LO], item[Field.HI]) == (first, positions[-1] + 1)
        else:
            assert item[Field.LO] == item[Field.HI]
    assert owners == {index: row for row in range(3) for index in range(cu[row], cu[row + 1])}


@hypothesis.given(chunks=chunks, cores=st.sampled_from([1, 2]))
@hypothesis.settings(max_examples=40)
def test_tiles_come_in_order_each_core_has_its_share_and_links_lead_to_what_sees_something(chunks, cores):
    lists, _, _ = prefill_items(chunks, cores, None)
    share = TILES // cores
    for core, items in enumerate(lists):
        tiles = [item[Field.TILE] for item in items]
        assert tiles == sorted(tiles)
        assert set(tiles) == set(range(core * share, (core + 1) * share))
        live = [item[Field.LO] < item[Field.HI] for item in items] + [True]
        for index, item in enumerate(items):
            assert item[Field.NEXT] == live.index(True, index + 1)


def test_decode_gives_each_row_an_item_and_each_core_as_many():
    work = np.asarray(tpu_work.decode_work(jnp.array([5, 0, 9], jnp.int32), cores=2, window=4))
    assert work[:, Field.TILE].tolist() == [[0, 1], [2, 3]]
    assert work[:, Field.LO].tolist() == [[1, 0], [5, 0]]
    assert work[:, Field.HI].tolist() == [[5, 0], [9, 0]]
    assert work[:, Field.NEXT].tolist() == [[2, 2], [2, 2]]
