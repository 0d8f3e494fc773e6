"""A vLLM log becomes a scenario with the server's settings, and its times are the server's own."""

import json

import pytest

from nanoserve.analysis.published.vllm_log import read_vllm_log
from nanoserve.specs.errors import TraceError

META = {
    "model": "meta-llama/Llama-3.1-8B",
    "vllm_version": "0.19.0",
    "engine_kwargs": {
        "tensor_parallel_size": 1,
        "max_num_seqs": 12,
        "max_num_batched_tokens": 512,
        "dtype": "bfloat16",
    },
}
CONFIG = {"nodes": [{"instances": [{"hardware": "RTXPRO6000"}]}]}
ROWS = [
    {"input_toks": 20, "output_toks": 1, "queued_ts": 11.0, "first_token_ts": 11.5, "last_token_ts": 11.5},
    {"input_toks": 10, "output_toks": 5, "queued_ts": 10.0, "first_token_ts": 10.25, "last_token_ts": 12.25},
]


def write(folder, meta=META, config=CONFIG, rows=ROWS):
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_requests_come_in_the_order_and_at_the_times_of_their_queueing(tmp_path):
    log = read_vllm_log(write(tmp_path))
    assert log.scenario.trace.prompt_tokens.tolist() == [10, 20]
    assert log.scenario.trace.arrival_s.tolist() == [0.0, 1.0]
    assert log.measured.ttft_s.tolist() == [0.25, 0.5]
    assert log.measured.tpot_s[0] == 0.5
    assert log.measured.duration_s == 2.25


def test_the_engine_has_the_settings_of_the_server(tmp_path):
    scenario = read_vllm_log(write(tmp_path)).scenario
    assert (scenario.engine.max_seqs, scenario.engine.max_step_tokens) == (12, 512)
    assert (scenario.model.name, scenario.cluster.chip.name) == ("llama-3.1-8b", "rtx_pro_6000")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"rows": [{"input_toks": 3}]}, "requests.jsonl: no output_toks"),
        ({"rows": []}, "requests.jsonl: no rows"),
        ({"config": {"nodes": []}}, "names no instance"),
        ({"config": {"nodes": [{"instances": [{"hardware": "RTXPRO600"}]}]}}, "Did you mean 'RTXPRO6000'"),
        ({"meta": {**META, "vllm_version": "0.19.0", "engine_kwargs": {"dtype": "float8"}}}, "dtype 'float8'"),
    ],
)
def test_a_log_that_is_wrong_says_where(tmp_path, broken, message):
    with pytest.raises(TraceError, match=message):
        read_vllm_log(write(tmp_path, **broken))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"meta\.json"):
        read_vllm_log(tmp_path)
