"""What the kernels fetch: whole pages of what each tile sees, held against the work lists that the kernels walk."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas.paged_attention import gpu_work, ledger, tpu_work
from kernels.pallas.paged_attention.tpu_work import Field

P = 4


def pages(lo: int, hi: int) -> int:
    """Pages of P tokens that hold any of `[lo, hi)`, one by one."""
    return len({position // P for position in range(lo, hi)})


lengths = st.lists(st.integers(0, 40), min_size=1, max_size=5)
windows = st.sampled_from([None, 1, 7])


@hypothesis.given(lengths=lengths, window=windows)
@hypothesis.settings(max_examples=12)
def test_decode_fetches_the_pages_of_the_tpu_kernels_work_list(lengths, window):
    items = np.asarray(tpu_work.decode_work(jnp.array(lengths), 1, window))[0]
    want = sum(pages(lo, hi) for lo, hi in zip(items[Field.LO], items[Field.HI], strict=True)) * P
    assert ledger.decode_gathered_tokens(np.array(lengths), P, window) == want


chunks = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), min_size=1, max_size=4)


@hypothesis.given(chunks=chunks, window=windows)
@hypothesis.settings(max_examples=12)
def test_prefill_fetches_the_pages_of_the_tpu_kernels_work_list(chunks, window):
    q_lens = np.array([new for _, new in chunks])
    kv_lens = np.array([past + new if new else 0 for past, new in chunks])
    bounds = jnp.array(np.cumsum([0, *q_lens]), jnp.int32)
    items = np.asarray(tpu_work.prefill_work(jnp.array(kv_lens, jnp.int32), bounds, 6, 8, 1, window))[0]
    want = sum(pages(lo, hi) for lo, hi in zip(items[Field.LO], items[Field.HI], strict=True)) * P
    found = ledger.prefill_gathered_tokens(kv_lens, q_lens, P, 8, window, across_chunks=True)
    assert found == want


@hypothesis.given(chunks=chunks)
@hypothesis.settings(max_examples=12)
def test_prefill_fetches_the_pages_of_the_gpu_kernels_tiles(chunks):
    q_lens = np.array([new for _, new in chunks])
    kv_lens = np.array([past + new if new else 0 for past, new in chunks])
    bounds = jnp.array(np.cumsum([0, *q_lens]), jnp.int32)
    work = gpu_work.prefill_work_list(jnp.array(kv_lens, jnp.int32), bounds, tokens=int(bounds[-1]), tile_tokens=8)
    tiles = np.asarray(work.items_W4)[: int(work.count_1[0])]
    want = sum(pages(0, position + count) for _, _, count, position in tiles) * P
    assert ledger.prefill_gathered_tokens(kv_lens, q_lens, P, 8, across_chunks=False) == want


@pytest.mark.parametrize("window", [None, 3])
def test_nothing_is_fetched_for_padding(window):
    assert ledger.decode_gathered_tokens(np.zeros(3, int), P, window) == 0
    nothing = np.zeros(3, int)
    assert ledger.prefill_gathered_tokens(nothing, nothing, P, 8, window, across_chunks=True) == 0
