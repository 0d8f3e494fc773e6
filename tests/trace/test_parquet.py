"""Our own trace file: what is written is what is read."""

import polars as pl
import pytest

from nanoserve.specs.errors import TraceError
from nanoserve.trace.columns import ragged
from nanoserve.trace.parquet import write_parquet
from nanoserve.trace.readers import read_trace
from nanoserve.trace.types import Trace
from tests.trace.factories import AGENT, full_trace, same, shared, small_trace


def round_trip(trace: Trace, tmp_path) -> Trace:
    write_parquet(trace, tmp_path / "t.parquet")
    return read_trace(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "trace",
    [full_trace(), small_trace([0.0, 1e-9]), small_trace([1.0], prefix_hashes=ragged([[]]), prefix_block_tokens=16)],
    ids=["every column", "required columns", "an empty list"],
)
def test_every_field_survives_bit_for_bit(trace, tmp_path):
    assert same(round_trip(trace, tmp_path), trace)


@pytest.mark.parametrize(
    "name", ["agent_miniswe_smollm2_blk16.jsonl", "llmservingsim_sharegpt_llama31_300_sps10.jsonl"]
)
def test_shared_traces_survive_bit_for_bit(name, tmp_path):
    trace = read_trace(shared(name))
    assert same(round_trip(trace, tmp_path), trace)


def test_a_file_appears_whole_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"old")
    write_parquet(small_trace([0.0]), path)
    assert len(read_trace(path)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]


def test_parquet_written_by_others_is_read_by_its_column_names(tmp_path):
    frame = pl.DataFrame({"arrival_s": [0, 1], "prompt_tokens": [5, 6], "output_tokens": [1, 2], "more": ["a", "b"]})
    frame.write_parquet(tmp_path / "theirs.parquet")
    trace = read_trace(tmp_path / "theirs.parquet")
    assert trace.name == "theirs" and trace.arrival_s.tolist() == [0.0, 1.0]


GOOD = {"arrival_s": [0.0, 1.0], "prompt_tokens": [5, 6], "output_tokens": [1, 2]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arrival_s": None, "arrivals": [0.0, 1.0]}, "column arrival_s is missing. Did you mean 'arrivals'?"),
        ({"prompt_tokens": [5.0, 6.0]}, "column prompt_tokens holds Float64; wanted integers"),
        ({"prompt_tokens": [5, None]}, "prompt_tokens of request 1 is null"),
        ({"output_tokens": [1, 0]}, "output_tokens of request 1 is 0"),
        ({"arrival_s": [1.0, 0.5]}, "arrival_s of request 1 is 0.5; wanted sorted times"),
        ({"arrival_s": [0.0, float("nan")]}, "arrival_s of request 1 is nan"),
        ({"arrival_s": ["0", "1"]}, "column arrival_s holds String; wanted numbers"),
        ({"prompt_ids": [1, 2]}, "column prompt_ids holds Int64; wanted lists of integers"),
        ({"prompt_ids": [["a"], ["b"]]}, "wanted lists of integers"),
        ({"prompt_ids": [[1, None], [2]]}, "prompt_ids of request 0 has a null"),
        ({"texts": [1, 2]}, "column texts holds Int64; wanted text"),
    ],
)
def test_columns_that_cannot_be_a_trace_are_refused(tmp_path, changes, says):
    columns = {name: values for name, values in (GOOD | changes).items() if values is not None}
    path = tmp_path / "t.parquet"
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(path) in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize("metadata", ["not json", "[1]", '{"name": 1, "source": "b"}', '{"name": "a"}'])
def test_metadata_that_we_did_not_write_is_refused(tmp_path, metadata):
    path = tmp_path / "t.parquet"
    pl.DataFrame(GOOD).write_parquet(path, metadata={"nanoserve_trace": metadata})
    with pytest.raises(TraceError, match="metadata"):
        read_trace(path)


def test_text_and_parquet_of_one_trace_are_the_same_trace(tmp_path):
    (tmp_path / "t").write_text(AGENT)
    trace = read_trace(tmp_path / "t")
    assert same(round_trip(trace, tmp_path), trace)
