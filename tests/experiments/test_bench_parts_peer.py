"""Our steps beside another framework's: what it is given is our model and our KV, and what disagrees is found out.

PyTorch is no dependency of the project. What it is handed is checked without it, against a dense model in NumPy; where
it is installed with transformers, its own model is asked, too.
"""

import importlib.util
import time

import jax
import numpy as np
import pytest

from experiments.bench import peer_state, peer_torch
from experiments.bench.attention_timing import CPU, Timed
from experiments.bench.h100_table import rows as table_rows
from experiments.bench.parts import Context, Shared, peer, step_cases, step_ready
from experiments.bench.results_file import MEASURED
from nanoserve.model.export import tensors
from nanoserve.model.teacher import teacher_forced
from nanoserve.specs.errors import ConfigError, WeightsError
from tests.executors.dense import next_scores
from tests.model.factories import TINY, random_params

TOLERANCE = 1e-4  # of logits in float32
(CASE,) = peer.cases(toy=True)
LOGITS = np.random.default_rng(0).standard_normal((4, 50))

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Exported:
    """A source of the tensors that the peer is given."""

    def __init__(self, spec, params):
        self._tensors = {name: np.asarray(array) for name, array in tensors(spec, params)}

    def read(self, name):
        return self._tensors[name]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    options = {"clock": time.perf_counter, "found": {}, "toy": True, "shared": Shared()}
    return Context(device=jax.devices()[0], effort=CPU, scratch=tmp_path_factory.mktemp("scratch"), **options)


@pytest.fixture(scope="module")
def ready(context) -> step_ready.Prepared:
    return step_ready.prepare(CASE.step, context)


def test_a_dense_model_with_the_tensors_that_are_handed_over_says_what_ours_says():
    params = random_params(TINY, seed=1)
    ids = np.random.default_rng(1).integers(TINY.vocab, size=9)
    ours = teacher_forced(TINY, params, ids.astype(np.int32), "float32")[-1]
    np.testing.assert_allclose(ours, next_scores(TINY, Exported(TINY, params), ids.tolist()), atol=TOLERANCE)


def test_keys_and_values_are_handed_over_in_the_order_of_positions(ready):
    pages, longest = np.asarray(ready.executor.state.pool.pages), CASE.context_tokens + step_ready.LOOP_STEPS // 2
    handed = list(peer_state.keys_and_values(ready))
    assert len(handed) == ready.spec.layers
    for layer, position, row in ((0, 0, 1), (1, 65, 0), (1, longest - 1, 1)):
        page, offset = ready.pages[row][position // step_cases.PAGE_TOKENS], position % step_cases.PAGE_TOKENS
        for which, array in enumerate(handed[layer]):
            assert array.shape == (CASE.rows, longest, ready.spec.kv_heads, ready.spec.head_size)
            np.testing.assert_array_equal(array[row, position], pages[layer, page, offset, :, which])


def test_the_logits_that_are_compared_are_those_of_the_step_that_is_timed(ready):
    logits_BV = np.asarray(peer_state.first_logits(ready, ready.plan(peer.COMPARED_STEPS)))
    tokens = peer._our_tokens(ready)
    assert tokens.shape == (CASE.rows, peer.COMPARED_STEPS)
    np.testing.assert_array_equal(tokens[:, 0], logits_BV.argmax(-1))
    log_softmax = np.asarray(jax.nn.log_softmax(logits_BV))
    for row, said in ready.book.logprobs.items():
        assert said[-peer.COMPARED_STEPS] == pytest.approx(log_softmax[row, tokens[row, 0]], abs=TOLERANCE)


def test_logits_may_differ_by_rounding_and_by_no_more():
    found = peer.agreement(LOGITS, LOGITS * 1.01)
    assert (round(found["logits_error"], 3), found["same_best"]) == (0.01, 1.0)
    for other in (LOGITS[::-1], np.full_like(LOGITS, np.nan)):
        with pytest.raises(ArithmeticError, match="logits of the first step differ by"):
            peer.agreement(LOGITS, other)


def test_tokens_count_as_equal_until_a_rows_first_difference():
    ours, theirs = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 9, 3], [4, 5, 6]])
    assert peer.equality(ours, theirs) == {"compared_tokens": 6, "equal_tokens": 4, "equal_rows": 1}


def test_a_record_says_how_many_times_as_fast_ours_is():
    found = peer.record(32, Timed((0.02, 0.01, 0.03)), Timed((0.05,)))
    assert (found["tokens_per_s"], found["peer_tokens_per_s"]) == (1600, 640)
    assert found["times_as_fast"] == 2.5
    whole = {"status": MEASURED} | found | peer.agreement(LOGITS, LOGITS) | peer.equality(LOGITS, LOGITS)
    header, cells = table_rows(peer.NAME, {CASE.name: whole})
    assert dict(zip(header, cells, strict=True))["times as fast"] == "2.50"


def test_ratios_are_wanted_at_one_row_and_at_32_before_anything_that_takes_minutes_to_compile():
    usual = [case for case in peer.cases(toy=False) if not case.extra]
    assert {case.rows for case in usual[:2]} == {1, 32}
    assert {case.mode for case in usual} == {peer.REDUCE_OVERHEAD}
    assert {(case.rows, case.context_tokens) for case in usual} == {(B, S) for B in (1, 32) for S in (1024, 4096)}


@pytest.mark.parametrize(("module", "reason"), [("torch", "PyTorch is"), ("transformers", "transformers is")])
def test_what_is_not_installed_is_a_reason_to_skip(monkeypatch, context, module, reason):
    found = {"torch": object(), "transformers": object(), module: None}
    monkeypatch.setattr(importlib.util, "find_spec", found.__getitem__)
    with pytest.raises(ConfigError, match=f"{reason} not installed"):
        peer.measure(CASE, context)


def test_transformers_own_model_says_what_ours_says(context, ready):
    """Not compiled: compiling takes a minute, and changes roundings."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    plan, tokens = ready.plan(peer.COMPARED_STEPS), ready.executor.state.last_tokens[: CASE.rows]
    llama = peer_torch.llama(ready.spec, tensors(ready.spec, ready.model.params), "cpu")
    theirs = peer_torch.decoding(llama, peer_state.keys_and_values(ready), tokens, peer.REDUCE_OVERHEAD)
    past, ours = plan.rows()[0].start, peer_state.first_logits(ready, plan)
    assert peer.agreement(ours, theirs.logits(past))["logits_error"] < 0.03
    with pytest.raises(ArithmeticError):
        peer.agreement(ours, theirs.logits(past - 1))


def test_a_model_with_a_parameter_that_got_no_tensor_is_refused(ready):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    all_but_one = list(tensors(ready.spec, ready.model.params))[:-1]
    with pytest.raises(WeightsError, match=r"got no tensor: model\.layers\.1\.post_attention_layernorm"):
        peer_torch.llama(ready.spec, all_but_one, "cpu")
