"""Every published row is replayed or refused with a reason, whatever it measured."""

import dataclasses
import pathlib

import numpy as np
import pytest

from nanoserve.analysis.published.results import read_published
from nanoserve.analysis.published.rows import Case, NotReplayed, case_of
from tests.analysis.published import factories as make

TABLE = pathlib.Path(__file__).parents[4] / "shared" / "facts" / "published_throughput.csv"
SHARE_REPLAYED = 0.85


def case(**changes) -> Case:
    found = case_of(make.row(**changes))
    assert isinstance(found, Case), found
    return found


def reason(**changes) -> str:
    found = case_of(make.row(**changes))
    assert isinstance(found, NotReplayed), found
    return found.reason


@pytest.mark.skipif(not TABLE.exists(), reason="the table of published results is not at ../shared/facts")
def test_most_published_rows_are_replayed_and_the_others_say_why_not():
    found = [case_of(row) for row in read_published(TABLE)]
    assert sum(isinstance(item, Case) for item in found) > SHARE_REPLAYED * len(found)
    assert all(item.reason for item in found if isinstance(item, NotReplayed))


def test_a_scenario_does_not_depend_on_what_was_measured():
    one, other = case().scenario, case(ttft_s=9.9, tpot_s=0.5, output_tokens_per_s=3.0).scenario
    assert (one.trace.prompt_tokens == other.trace.prompt_tokens).all()
    assert (one.trace.output_tokens == other.trace.output_tokens).all()
    assert dataclasses.replace(one, trace=other.trace) == other


def test_a_spread_of_lengths_is_drawn_where_the_row_states_one():
    trace = case().scenario.trace
    for tokens, nominal in ((trace.prompt_tokens, 1000), (trace.output_tokens, 500)):
        assert 0.8 * nominal <= tokens.min() < 0.82 * nominal
        assert 0.98 * nominal < tokens.max() <= nominal


def test_equal_lengths_have_equal_prompts_and_almost_equal_outputs():
    trace = case(mode="closed loop", engine="vllm 0.12.0").scenario.trace
    assert set(trace.prompt_tokens) == {1000}
    assert 490 <= trace.output_tokens.min() < trace.output_tokens.max() <= 510


def test_a_closed_loop_has_as_many_users_and_slots_as_the_row_says():
    scenario = case(concurrency=16).scenario
    assert (scenario.clients, scenario.engine.max_seqs, len(scenario.trace)) == (16, 16, 160)
    assert scenario.served


def test_requests_of_maximum_throughput_are_all_there_at_the_start():
    scenario = case(mode="max-throughput IFB", engine="TensorRT-LLM 0.17", concurrency=None).scenario
    assert scenario.clients is None
    assert not scenario.served
    assert not scenario.trace.arrival_s.any()


@pytest.mark.parametrize(
    ("engine", "stack"),
    [
        ("vllm", "vllm"),
        ("vllm 0.12.0", "vllm_sync"),
        ("vLLM 0.19.0", "vllm"),
        ("vLLM nightly", "vllm_sync"),
        ("trtllm 1.0.0rc3", "trtllm_serve"),
        ("TensorRT-LLM 0.17", "tensorrt_llm"),
        ("sglang 0.5.1.post1", "sglang"),
    ],
)
def test_an_engine_is_priced_with_its_own_stack(engine, stack):
    assert case(engine=engine).stack == stack


def test_fp8_checkpoints_of_tensorrt_llm_have_fp8_kv_and_those_of_vllm_do_not():
    assert case(engine="trtllm").scenario.precision.kv == "fp8"
    assert case(engine="vllm").scenario.precision.kv == "bf16"


@pytest.mark.parametrize(("hardware", "ways", "replicas"), [("DGX_H100-SXM-80GBx8", 2, 4), ("H200-SXM-141GBx8", 1, 8)])
def test_an_mlperf_system_is_replicas_on_as_few_chips_as_hold_the_model(hardware, ways, replicas):
    found = case(hardware=hardware, mode="MLPerf Offline", tensor=None, chips=8, engine="TensorRT-LLM (submission)")
    assert (found.scenario.cluster.tensor, found.replicas, found.limits) == (ways, replicas, None)
    server = case(hardware=hardware, mode="MLPerf Server", tensor=None, chips=8, engine="TensorRT-LLM (submission)")
    assert server.limits is not None


def test_openorca_lengths_have_their_published_mean():
    trace = case(mode="MLPerf Offline", tensor=None, prompt_tokens=None, output_tokens=None).scenario.trace
    for tokens in (trace.prompt_tokens, trace.output_tokens):
        assert np.mean(tokens) == pytest.approx(294, rel=0.02)
        assert tokens.max() <= 1024


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hardware": "abacus"}, "hardware 'abacus'"),
        ({"hardware": "H200-SXM_MaxQ"}, "power is capped"),
        ({"engine": "llama.cpp"}, "the stack 'llama.cpp'"),
        ({"model": "Llama-9"}, "model 'Llama-9'"),
        ({"precision": "int3"}, "precision 'int3'"),
        ({"tensor": None}, "how many chips share"),
        ({"prompt_tokens": None}, "no prompt and output length"),
        ({"concurrency": None}, "no concurrency"),
    ],
)
def test_a_row_that_leaves_out_or_names_something_unknown_says_which(changes, why):
    assert why in reason(**changes)
