"""Every format read right: small files whose content is known, and the shared traces against a plain count."""

import csv
import datetime
import gzip
import json
import lzma

import numpy as np
import pytest

from nanoserve.specs.errors import TraceError
from nanoserve.trace.readers import read_trace
from tests.trace.factories import AGENT, AZURE, BURST, MOONCAKE, SHAREGPT, same, shared

VLLM = {
    "input_lens": [30, 10, 20, 5],
    "output_lens": [3, 1, 0, 2],
    "start_times": [1000.5, 1000.25, 1000.0, 1002.0],
    "errors": ["", "", "timed out", ""],
    "request_rate": 4.0,
}


def read(tmp_path, text: str, name: str = "file.txt", **options):
    path = tmp_path / name
    path.write_text(text)
    return read_trace(path, **options)


def test_azure_keeps_all_seven_decimals(tmp_path):
    trace = read(tmp_path, AZURE)
    assert trace.arrival_s.tolist() == [0.0, 43145790 / 1e7, 45418771 / 1e7]
    assert trace.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]


def test_azure_2024_dates_with_a_zone_are_read(tmp_path):
    rows = "2024-05-10 00:00:00+00:00,5,6\n2024-05-10 00:00:00.009930+00:00,7,8\n"
    assert read(tmp_path, AZURE.split("\n")[0] + "\n" + rows).arrival_s.tolist() == [0.0, 0.00993]


def test_burstgpt_failures_are_dropped_and_counted(tmp_path):
    trace = read(tmp_path, BURST)
    assert trace.arrival_s.tolist() == [0.0, 113.0]
    assert trace.prompt_tokens.tolist() == [472, 417]
    assert trace.output_tokens.tolist() == [18, 276]
    assert "1 failed" in trace.source


def test_burstgpt_sessions_are_numbered_and_api_calls_stand_alone(tmp_path):
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    rows = "".join(f"{second},{session},1,m,5,6,11,x\n" for second, session in enumerate(["u", "", "v", "u", ""]))
    trace = read(tmp_path, header + rows)
    assert trace.session.tolist() == [0, 1, 2, 0, 3]
    assert trace.turn.tolist() == [0, 0, 0, 1, 0]


def test_mooncake_integers_are_milliseconds_and_only_whole_blocks_keep_their_id(tmp_path):
    trace = read(tmp_path, MOONCAKE)
    assert trace.arrival_s.tolist() == [0.0, 0.003, 3.0]
    assert trace.prefix_block_tokens == 512
    assert [trace.prefix_hashes.row(row).tolist() for row in range(3)] == [[0, 1, 2, 3], [0, 14], [0]]


def test_agent_fractions_are_seconds_and_turns_count_from_0(tmp_path):
    trace = read(tmp_path, AGENT)
    assert trace.arrival_s.tolist() == [0.0, 1.25, 2.0]
    assert trace.prefix_block_tokens == 16
    assert (trace.session.tolist(), trace.turn.tolist()) == ([0, 1, 0], [0, 0, 1])


def test_ids_without_the_partial_block_are_understood(tmp_path):
    rows = [(40, [1, 2]), (16, [1]), (15, [])]
    lines = [{"timestamp": 0.0, "input_length": n, "output_length": 1, "hash_ids": ids} for n, ids in rows]
    trace = read(tmp_path, "\n".join(map(json.dumps, lines)))
    assert trace.prefix_block_tokens == 16
    assert [trace.prefix_hashes.row(row).tolist() for row in range(3)] == [[1, 2], [1], []]


def test_sharegpt_brings_token_ids(tmp_path):
    trace = read(tmp_path, SHAREGPT)
    assert trace.arrival_s.tolist() == [0.046926808, 1.000000001]
    assert trace.prompt_ids.row(0).tolist() == [5, 6, 7]
    assert trace.output_ids.row(1).tolist() == [1]


@pytest.mark.parametrize("indent", [None, 2])
def test_vllm_results_are_sorted_by_time_sent_without_failures(tmp_path, indent):
    trace = read(tmp_path, json.dumps(VLLM, indent=indent))
    assert trace.arrival_s.tolist() == [0.25, 0.5, 2.0]
    assert trace.prompt_tokens.tolist() == [10, 30, 5]
    assert trace.output_tokens.tolist() == [1, 3, 2]
    assert "1 failed" in trace.source


@pytest.mark.parametrize(("rate", "arrivals"), [(4.0, [0.0, 0.25, 0.75]), ("inf", [0.0, 0.0, 0.0])])
def test_vllm_results_without_times_say_how_they_were_spaced(tmp_path, rate, arrivals):
    old = {key: value for key, value in VLLM.items() if key != "start_times"} | {"request_rate": rate}
    trace = read(tmp_path, json.dumps(old))
    assert trace.arrival_s.tolist() == arrivals
    assert "no start_times" in trace.source


@pytest.mark.parametrize("text", [AZURE, BURST, MOONCAKE, AGENT, SHAREGPT, json.dumps(VLLM)])
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_files_read_like_plain_ones_whatever_their_name(tmp_path, text, pack):
    path = tmp_path / "misleading.csv"
    path.write_bytes(pack(text.encode()))
    packed = read_trace(path)
    path.write_text(text)
    assert same(packed, read_trace(path))


@pytest.mark.parametrize("text", [AZURE, BURST, MOONCAKE, AGENT])
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(tmp_path, text):
    plain = read(tmp_path, text)
    messy = "\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n"
    (tmp_path / "file.txt").write_bytes(messy.encode())
    assert same(plain, read_trace(tmp_path / "file.txt"))


@pytest.mark.parametrize(("unit", "factor"), [("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)])
def test_time_unit_overrides_the_format(tmp_path, unit, factor):
    last = read(tmp_path, MOONCAKE, time_unit=unit).arrival_s[-1]
    assert last == pytest.approx(3000 * factor, rel=1e-15)
    assert read(tmp_path, BURST, time_unit=unit).arrival_s[-1] == pytest.approx(113 * factor, rel=1e-12)


def test_limit_takes_the_first_requests_and_says_so(tmp_path):
    trace = read(tmp_path, AGENT, limit=2)
    assert len(trace) == 2 and len(trace.prefix_hashes) == 2
    assert "first 2" in trace.source
    assert len(read(tmp_path, AGENT, limit=99)) == 3


def test_a_trace_is_named_after_its_file(tmp_path):
    (tmp_path / "calls.v2.csv.gz").write_bytes(gzip.compress(AZURE.encode()))
    assert read_trace(tmp_path / "calls.v2.csv.gz").name == "calls.v2"


@pytest.mark.parametrize(
    ("name", "count"),
    [("AzureLLMInferenceTrace_conv_2023.csv", 19_366), ("AzureLLMInferenceTrace_code_2023.csv", 8_819)],
)
def test_azure_traces_agree_with_the_csv_module(name, count):
    path = shared(name)
    trace = read_trace(path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(trace) == len(rows) == count
    assert trace.prompt_tokens.tolist() == [int(row["ContextTokens"]) for row in rows]
    assert trace.output_tokens.tolist() == [int(row["GeneratedTokens"]) for row in rows]
    assert np.rint(trace.arrival_s * 1e7).astype(int).tolist() == [_tenths_of_us(rows, row) for row in rows]


def _tenths_of_us(rows: list[dict[str, str]], row: dict[str, str]) -> int:
    def since_epoch(stamp: str) -> int:
        whole, decimals = stamp.split(".")
        seconds = datetime.datetime.fromisoformat(whole + "+00:00").timestamp()
        return int(seconds) * 10**7 + int(decimals)

    return since_epoch(row["TIMESTAMP"]) - since_epoch(rows[0]["TIMESTAMP"])


@pytest.mark.parametrize(
    ("name", "count", "keys", "per_s", "block_tokens"),
    [
        ("mooncake_conversation_trace.jsonl", 12_031, ("timestamp", "input_length", "output_length"), 1000, 512),
        ("agent_miniswe_smollm2_blk16.jsonl", 402, ("timestamp", "input_length", "output_length"), 1, 16),
        (
            "llmservingsim_sharegpt_llama31_300_sps10.jsonl",
            300,
            ("arrival_time_ns", "input_toks", "output_toks"),
            10**9,
            None,
        ),
    ],
)
def test_jsonl_traces_agree_with_the_json_module(name, count, keys, per_s, block_tokens):
    path = shared(name)
    trace = read_trace(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(trace) == len(rows) == count
    assert trace.arrival_s.tolist() == [row[keys[0]] / per_s for row in rows]
    assert trace.prompt_tokens.tolist() == [row[keys[1]] for row in rows]
    assert trace.output_tokens.tolist() == [row[keys[2]] for row in rows]
    assert trace.prefix_block_tokens == block_tokens
    if trace.prompt_ids is not None and trace.output_ids is not None:
        assert trace.prompt_ids.values.sum() == sum(sum(row["input_tok_ids"]) for row in rows)
        assert np.diff(trace.output_ids.offsets).tolist() == [row["output_toks"] for row in rows]
    if trace.prefix_hashes is not None and block_tokens:
        whole = [row["hash_ids"][: row["input_length"] // block_tokens] for row in rows]
        assert [trace.prefix_hashes.row(i).tolist() for i in range(len(trace))] == whole


def test_agent_sessions_grow_turn_by_turn():
    trace = read_trace(shared("agent_miniswe_smollm2_blk16.jsonl"))
    assert trace.session.max() == 19
    for session in range(20):
        assert trace.turn[trace.session == session].tolist() == list(range((trace.session == session).sum()))


def test_prompts_as_text_are_counted_by_the_tokenizer(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "abc", "output_tokens": 5}\n{"prompt": "de", "output_tokens": 6}\n')
    trace = read_trace(path, encode=lambda text: [ord(letter) for letter in text])
    assert trace.texts == ("abc", "de")
    assert trace.prompt_tokens.tolist() == [3, 2] and trace.output_tokens.tolist() == [5, 6]
    assert trace.prompt_ids.row(1).tolist() == [100, 101]
    assert trace.arrival_s.tolist() == [0.0, 0.0]


def test_prompts_as_text_without_a_tokenizer_say_what_to_name(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "abc", "output_tokens": 5}\n')
    with pytest.raises(TraceError, match=r"Experiment\.weights"):
        read_trace(path)
    path.write_text('{"prompt": "", "output_tokens": 5}\n')
    with pytest.raises(TraceError, match=r"prompts\.jsonl:1: prompt is .*text that is not empty"):
        read_trace(path, encode=list)
