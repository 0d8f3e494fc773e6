"""Likelihoods of given tokens are the same by chunks and by decode steps, whatever stands behind a row's end."""

import numpy as np
import pytest

from nanoserve.model.teacher import teacher_forced, teacher_forced_decoding
from tests.model.factories import TINY, random_params

PARAMS = random_params()
LENGTHS = (19, 17, 2)  # more than a page, a page and one, one step
TOLERANCE = 1e-5


@pytest.mark.usefixtures("quick_compilation")
def test_decode_steps_say_what_a_chunk_says():
    rng = np.random.default_rng(3)
    tokens_BT, padding_BT = rng.integers(TINY.vocab, size=(2, len(LENGTHS), max(LENGTHS))).astype(np.int32)
    by_steps = np.asarray(teacher_forced_decoding(TINY, PARAMS, tokens_BT, "float32"))
    for row, length in enumerate(LENGTHS):
        otherwise_padded = np.where(np.arange(max(LENGTHS)) < length, tokens_BT[row], padding_BT[row])
        logits_TV = np.asarray(teacher_forced(TINY, PARAMS, otherwise_padded, "float32"), np.float64)[: length - 1]
        chosen = logits_TV[np.arange(length - 1), tokens_BT[row, 1:length]]
        by_chunk = chosen - np.log(np.exp(logits_TV).sum(axis=-1))
        np.testing.assert_allclose(by_steps[row, : length - 1], by_chunk, atol=TOLERANCE)
