"""The oracle: paged attention in NumPy float64, one query and one head at a time, with no shared code.

Slow and obvious on purpose; every implementation is compared with it.
"""

import numpy as np


def decode_attention(
    q_BHh, kv_pages, page_table_BN, kv_lens_B, *, scale, window=None, soft_cap=None, kv_scales=None
) -> np.ndarray:
    """See `api.decode_attention`; float64 [B, H, h]."""
    out = np.zeros(np.shape(q_BHh), np.float64)
    for row, length in enumerate(kv_lens_B):
        if length > 0:
            keys, values = _sequence(kv_pages, kv_scales, page_table_BN[row], int(length))
            out[row] = _attend(q_BHh[row], keys, values, int(length) - 1, scale, window, soft_cap)
    return out


def prefill_attention(
    q_THh, kv_pages, page_table_RN, kv_lens_R, cu_q_lens, *, scale, window=None, soft_cap=None, kv_scales=None
) -> np.ndarray:
    """See `api.prefill_attention`; float64 [T, H, h]."""
    out = np.zeros(np.shape(q_THh), np.float64)
    for row, length in enumerate(kv_lens_R):
        keys, values = _sequence(kv_pages, kv_scales, page_table_RN[row], int(length))
        start, end = int(cu_q_lens[row]), int(cu_q_lens[row + 1])
        for token in range(start, end):
            position = int(length) - (end - token)
            out[token] = _attend(q_THh[token], keys, values, position, scale, window, soft_cap)
    return out


def _sequence(kv_pages, kv_scales, page_ids, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values [length, K, h] of one sequence, in order."""
    page_tokens = kv_pages.shape[1]
    places = [(page_ids[s // page_tokens], s % page_tokens) for s in range(length)]
    kv = np.array([kv_pages[place] for place in places], np.float64).reshape(length, *kv_pages.shape[2:])
    if kv_scales is not None:
        kv *= np.array([kv_scales[place] for place in places], np.float64).reshape(length, kv_pages.shape[2], 2, 1)
    return kv[:, :, 0], kv[:, :, 1]


def _attend(q_Hh, keys, values, position: int, scale, window, soft_cap) -> np.ndarray:
    """One token's heads over the positions it may see."""
    first = 0 if window is None else max(0, position - window + 1)
    groups = q_Hh.shape[0] // keys.shape[1]
    out = np.zeros(q_Hh.shape, np.float64)
    for head, query in enumerate(np.asarray(q_Hh, np.float64)):
        scores = keys[first : position + 1, head // groups] @ query * scale
        if soft_cap is not None:
            scores = soft_cap * np.tanh(scores / soft_cap)
        weights = np.exp(scores - scores.max())
        out[head] = weights @ values[first : position + 1, head // groups] / weights.sum()
    return out
