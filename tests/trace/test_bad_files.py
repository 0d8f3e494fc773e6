"""Files that are not traces: each is refused, with the file, the line, and what to do."""

import contextlib
import gzip
import json
import lzma

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoserve.specs.errors import ConfigError, TraceError
from nanoserve.trace.parquet import write_parquet
from nanoserve.trace.readers import read_trace
from tests.trace.factories import AGENT, AZURE, BURST, MOONCAKE, SHAREGPT, full_trace

VLLM = {"input_lens": [1, 2], "output_lens": [3, 4], "start_times": [0.0, 1.0], "errors": ["", ""]}


def refusal(tmp_path, content: str | bytes, **options) -> str:
    """The message with which a file is refused, without its folder."""
    path = tmp_path / "t"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TraceError) as caught:
        read_trace(path, **options)
    return str(caught.value).replace(str(path), "t")


def changed(text: str, line: int, old: str, new: str) -> str:
    """`text` with `old` replaced on one line (from 1)."""
    lines = text.split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "starts", "says"),
    [
        # columns
        (AZURE.replace("ContextTokens", "ContextToken"), "t:1:", "is missing. Did you mean 'ContextToken'?"),
        (BURST.replace("Response tokens", "Answer"), "t:1:", "looks like BurstGPT CSV"),
        ("a,b,c\n1,2,3\n", "t:1:", "Found: 'a', 'b', 'c'. Known: Azure CSV (TIMESTAMP"),
        ('{"when": 1}\n', "t:1:", "Known: Mooncake JSONL (timestamp"),
        (changed(MOONCAKE, 2, "output_length", "output_lenght"), "t:2:", "Did you mean 'output_lenght'?"),
        # lengths
        (changed(AZURE, 3, ",396,", ",-1,"), "t:3:", "ContextTokens is -1"),
        (changed(AZURE, 3, ",396,", ",0,"), "t:3:", "ContextTokens is 0"),
        (changed(AZURE, 4, ",55", ",0"), "t:4:", "GeneratedTokens is 0"),
        (changed(AZURE, 4, ",55", ",5.5"), "t:4:", "'5.5'; wanted a whole number"),
        (changed(AZURE, 4, ",55", ",99999999"), "t:4:", "99999999; wanted 1 to 10,000,000"),
        (changed(AZURE, 4, ",55", "," + "9" * 40), "t:4:", "wanted a whole number"),
        (changed(BURST, 2, ",472,", ",0,"), "t:2:", "Request tokens is 0"),
        (changed(BURST, 3, ",0,", ",-4,"), "t:3:", "Response tokens is -4"),
        (changed(MOONCAKE, 1, "2100", "0"), "t:1:", "input_length is 0; wanted a whole number from 1"),
        (changed(MOONCAKE, 3, "794", "7.5"), "t:3:", "output_length is 7.5"),
        (changed(MOONCAKE, 3, "794", "true"), "t:3:", "output_length is true"),
        (changed(MOONCAKE, 3, "794", '"794"'), "t:3:", 'output_length is "794"'),
        (changed(MOONCAKE, 3, "794", "1e99"), "t:3:", "wanted a whole number"),
        (changed(SHAREGPT, 2, '_toks":1', '_toks":2'), "t:2:", "input_toks is 2, but input_tok_ids has 1"),
        # times
        (changed(AZURE, 3, "18:15:50", "18:15:52"), "t:4:", "on line 3. Sort the file by time"),
        (changed(AZURE, 4, "2023", "2022"), "t:4:", "Sort the file by time"),
        (changed(AZURE, 3, "2023-11-16", "soon"), "t:3:", "TIMESTAMP is 'soon 18:15:50.9951690'"),
        (changed(BURST, 3, "45", "nan"), "t:3:", "arrival time nan s"),
        (changed(BURST, 2, "5", "-5"), "t:2:", "arrival time -5.0 s"),
        (changed(BURST, 4, "118", "44"), "t:4:", "44.0 s is before 45.0 s on line 3"),
        (changed(MOONCAKE, 2, '"timestamp": 3', '"timestamp": NaN'), "t:2:", "arrival time nan s"),
        (changed(MOONCAKE, 2, '"timestamp": 3', '"timestamp": -3'), "t:2:", "arrival time -0.003 s"),
        (changed(MOONCAKE, 3, "3000", "2"), "t:3:", "is before 0.003 s on line 2"),
        (changed(MOONCAKE, 3, "3000", "null"), "t:3:", "timestamp is null; wanted a number"),
        # cut or mangled
        (AZURE[:-8], "t:4:", "ContextTokens is nothing: the line is cut short"),
        (changed(AZURE, 3, ",396,", ",396,1,"), "t:3:", "4 columns where the header has 3"),
        (AZURE.split("\n")[0], "t:1:", "a header and no requests"),
        (MOONCAKE[:-30], "t:3:", "the last line is cut short"),
        (changed(MOONCAKE, 2, "}", ""), "t:2:", "not JSON"),
        ("[" * 100_000, "t:1:", "not JSON"),
        ("[1, 2]\n", "t:1:", "is not a JSON object"),
        ("{}\n", "t:1:", "no known trace format"),
        (json.dumps(VLLM)[:-9], "t:1:", "not JSON"),
        # ids
        (changed(MOONCAKE, 2, "[0, 14]", "[0, 14, 15]"), "t:2:", "3 hash_ids for 1024 prompt tokens; others have"),
        (changed(MOONCAKE, 2, "[0, 14]", '["0", 14]'), "t:2:", "hash_ids is"),
        (changed(MOONCAKE, 2, "14", "1" + "0" * 30), "t:2:", "wanted a list of 64-bit integers"),
        (changed(MOONCAKE, 2, "hash_ids", "hashes"), "t:2:", "hash_ids is missing, unlike on line 1"),
        (changed(AGENT, 3, '"b"', "[1]"), "t:3:", "session_id is [1]"),
        (changed(AGENT, 2, '"turn":1', '"turn":-1'), "t:2:", "turn is -1"),
        # bytes
        ("", "t:", "the file is empty"),
        (" \n\n", "t:", "the file is empty"),
        (gzip.compress(b"", mtime=0), "t:", "the file is empty"),
        (b"TIMESTAMP\n\x00\x01\x02", "t:2:", "byte 0x00 is not text"),
        (b"\x93NUMPY\xff\xfe", "t:1:", "byte 0x93 is not text"),
        (gzip.compress(AZURE.encode(), mtime=0)[:-10], "t:", "cut short or damaged"),
        (lzma.compress(AZURE.encode())[:-10], "t:", "cut short or damaged"),
        (lzma.compress(AZURE.encode())[:-1], "t:", "cut short or damaged"),
        (b"\x1f\x8b" + b"garbage" * 9, "t:", "cut short or damaged"),
        # vLLM
        (json.dumps(VLLM | {"input_lens": [1, 0]}), "t:", "input_lens[1] is 0"),
        (json.dumps(VLLM | {"input_lens": [1, -2]}), "t:", "input_lens[1] is -2"),
        (json.dumps(VLLM | {"output_lens": [1]}), "t:", "output_lens has not the 2 entries"),
        (json.dumps(VLLM | {"start_times": [0.0, None]}), "t:", "start_times[1] is None"),
        (json.dumps(VLLM | {"start_times": [0.0, float("nan")]}), "t:", "start_times[1] is nan"),
        (json.dumps(VLLM | {"errors": ["x", "y"]}), "t:", "none of the 2 requests succeeded"),
        (json.dumps({"completed": 2, "total_input_tokens": 3}), "t:", "--save-detailed"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_where_it_is_bad(tmp_path, content, starts, says):
    message = refusal(tmp_path, content)
    assert message.startswith(starts)
    assert says in message


def test_a_bad_line_beyond_the_limit_is_still_an_error(tmp_path):
    assert refusal(tmp_path, changed(AZURE, 4, ",55", ",0"), limit=1).startswith("t:4:")


def test_line_numbers_count_blank_lines(tmp_path):
    text = AZURE.replace("2023-11-16 18:15:51", "\n\n2023-11-16 18:15:51").replace(",55", ",0")
    assert refusal(tmp_path, text).startswith("t:6:")


def test_a_missing_file_names_the_nearest_one(tmp_path):
    (tmp_path / "conversation.csv").write_text(AZURE)
    with pytest.raises(TraceError, match=r"no such file. Did you mean 'conversation.csv'\?"):
        read_trace(tmp_path / "conversatoin.csv")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(TraceError, match="is a directory"):
        read_trace(tmp_path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_parquet_file_is_refused(tmp_path, kept):
    write_parquet(full_trace(), tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    assert "cut short or damaged" in refusal(tmp_path, content[: int(len(content) * kept)])


def test_an_unknown_time_unit_names_the_nearest(tmp_path):
    (tmp_path / "t").write_text(MOONCAKE)
    with pytest.raises(ConfigError, match=r"time_unit = 'mss' is not a unit of time\. Did you mean 'ms'"):
        read_trace(tmp_path / "t", time_unit="mss")


@pytest.mark.parametrize("content", [AZURE, SHAREGPT, json.dumps(VLLM)])
def test_a_time_unit_is_refused_where_the_file_fixes_it(tmp_path, content):
    (tmp_path / "t").write_text(content)
    with pytest.raises(ConfigError, match="does not apply"):
        read_trace(tmp_path / "t", time_unit="ms")


def test_a_limit_below_one_is_refused(tmp_path):
    (tmp_path / "t").write_text(AZURE)
    with pytest.raises(ConfigError, match="wanted at least 1"):
        read_trace(tmp_path / "t", limit=0)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.sampled_from([AZURE, BURST, MOONCAKE, AGENT, SHAREGPT, json.dumps(VLLM)]), data=st.data())
def test_damage_is_either_harmless_or_a_trace_error(tmp_path, text, data):
    """Bytes overwritten, removed and inserted anywhere: never another exception, never an invalid trace."""
    content = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        removed = data.draw(st.integers(0, 3))
        content[place : place + removed] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b",", b"-", b"9", b'"', b"["])
        )
    (tmp_path / "t").write_bytes(content)
    with contextlib.suppress(TraceError):
        read_trace(tmp_path / "t").validated()
