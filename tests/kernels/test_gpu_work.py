"""The GPU kernels' work lists: everything that must be attended to is, once, and nothing depends on a neighbour."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas.paged_attention import gpu, gpu_tuning, gpu_work, xla

ROWS, SPLITS, BLOCK, TILE = 4, 3, 8, 16
lengths = st.lists(st.integers(0, 90), min_size=ROWS, max_size=ROWS)

decode_cuts = jax.jit(gpu_work.decode_cuts, static_argnames=("splits", "block_tokens", "window"))
decode_work_list = jax.jit(gpu_work.decode_work_list)
prefill_work_list = jax.jit(gpu_work.prefill_work_list, static_argnames=("tokens", "tile_tokens"))


def real_items(work: gpu_work.WorkList) -> np.ndarray:
    return np.asarray(work.items_W4)[: int(work.count_1[0])]


@hypothesis.given(kv_lens=lengths, window=st.sampled_from([None, 1, 20]))
@hypothesis.settings(max_examples=50)
def test_decode_covers_every_visible_position_once_in_whole_blocks(kv_lens, window):
    cuts = decode_cuts(jnp.array(kv_lens, jnp.int32), splits=SPLITS, block_tokens=BLOCK, window=window)
    items = real_items(decode_work_list(cuts))
    covered = np.zeros((ROWS, 90), np.int32)
    for row, split, begin, end in items:
        assert begin < end
        assert split < SPLITS
        assert end == kv_lens[row] or end % BLOCK == 0
        covered[row, begin:end] += 1
    for row, kv_len in enumerate(kv_lens):
        first = 0 if window is None else max(0, kv_len - window)
        expected = (np.arange(90) >= first) & (np.arange(90) < kv_len)
        np.testing.assert_array_equal(covered[row], expected)


@hypothesis.given(kv_lens=lengths, other=lengths)
@hypothesis.settings(max_examples=20)
def test_the_cuts_of_a_row_do_not_depend_on_the_other_rows(kv_lens, other):
    cuts = decode_cuts(jnp.array(kv_lens, jnp.int32), splits=SPLITS, block_tokens=BLOCK)
    changed = decode_cuts(jnp.array([kv_lens[0], *other[1:]], jnp.int32), splits=SPLITS, block_tokens=BLOCK)
    np.testing.assert_array_equal(cuts[0], changed[0])


@hypothesis.given(kv_lens=lengths)
@hypothesis.settings(max_examples=20)
def test_the_longest_items_come_first_and_empty_ones_last(kv_lens):
    work = decode_work_list(decode_cuts(jnp.array(kv_lens, jnp.int32), splits=SPLITS, block_tokens=BLOCK))
    sizes = np.asarray(work.items_W4[:, 3] - work.items_W4[:, 2])
    assert (np.diff(sizes) <= 0).all()
    assert work.count_1[0] == (sizes > 0).sum()


chunks = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=ROWS, max_size=ROWS)


@hypothesis.given(chunks=chunks, padding=st.sampled_from([0, 1, 50]))
@hypothesis.settings(max_examples=50)
def test_prefill_writes_every_token_once_and_padding_sees_nothing(chunks, padding):
    q_lens = np.array([new for _, new in chunks], np.int32)
    kv_lens = np.array([past + new for past, new in chunks], np.int32)
    cu_q_lens = np.cumsum([0, *q_lens]).astype(np.int32)
    tokens = 4 * 40 + padding  # one shape whatever the chunks: the rest is padding too
    items = real_items(prefill_work_list(kv_lens, cu_q_lens, tokens=tokens, tile_tokens=TILE))
    position = np.full(tokens, -1)
    for row, token, count, first in items:
        assert 0 < count <= TILE
        assert (position[token : token + count] == -1).all()
        position[token : token + count] = first + np.arange(count)
        if first >= 0:
            assert cu_q_lens[row] <= token < token + count <= cu_q_lens[row + 1]
    for row, (past, new) in enumerate(chunks):
        np.testing.assert_array_equal(position[cu_q_lens[row] : cu_q_lens[row + 1]], past + np.arange(new))
    assert (position[cu_q_lens[-1] :] < -tokens).all()


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 32, 128])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_rows_are_cut_finely_only_where_thread_blocks_would_have_nothing_to_do(rows, kv_heads):
    pages = jax.ShapeDtypeStruct((1, 64, kv_heads, 2, 128), "bfloat16")
    splits = gpu_tuning.decode_blocks(pages, rows, table_pages=1000).splits
    assert splits <= gpu_tuning.USUAL_SPLITS or splits * rows * kv_heads <= gpu_tuning.THREAD_BLOCKS
    assert splits * rows * kv_heads > 0.9 * gpu_tuning.THREAD_BLOCKS


@pytest.mark.parametrize("page", [2, 7])  # in the pool, and beyond it
@pytest.mark.parametrize("quantised", [False, True])
def test_a_lone_token_is_written_like_one_of_many(page, quantised):
    pool = jnp.zeros((4, 8, 2, 2, 16), "int8" if quantised else "bfloat16")
    token = jnp.arange(2 * 2 * 16).reshape(1, 2, 2, 16).astype(pool.dtype)
    scales = (jnp.zeros(pool.shape[:4]), jnp.ones((1, 2, 2))) if quantised else ()
    where = jnp.array([page]), jnp.array([3]), jnp.int32(0)
    for got, want in zip(
        jax.tree.leaves(gpu.write_kv(pool, token, *where, *scales)),
        jax.tree.leaves(xla.write_kv(pool, token, *where, *scales)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)
        assert (np.asarray(got) != 0).any() == (page < 4)
