"""Small trace files and traces for the tests of this room, and where the shared traces lie."""

import pathlib

import numpy as np
import pytest

from nanoserve.trace.columns import ragged
from nanoserve.trace.types import Trace

TRACES = pathlib.Path(__file__).parents[3] / "shared" / "traces"

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224671,879,55
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 2100, "output_length": 500, "hash_ids": [0, 1, 2, 3, 4]}
{"timestamp": 3, "input_length": 1024, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 3000, "input_length": 513, "output_length": 794, "hash_ids": [0, 28]}
"""
AGENT = """{"session_id":"b","timestamp":0.0,"input_length":33,"output_length":2,"hash_ids":[0,1,2],"turn":1}
{"session_id":"a","timestamp":1.25,"input_length":16,"output_length":3,"hash_ids":[0],"turn":1}
{"session_id":"b","timestamp":2,"input_length":48,"output_length":4,"hash_ids":[0,1,9],"turn":2}
"""
SHAREGPT = """{"input_toks":3,"output_toks":2,"arrival_time_ns":46926808,"input_tok_ids":[5,6,7],"output_tok_ids":[8,9]}
{"input_toks":1,"output_toks":1,"arrival_time_ns":1000000001,"input_tok_ids":[5],"output_tok_ids":[1]}
"""


def shared(name: str) -> pathlib.Path:
    """The path of a shared trace; skips the test where it is absent."""
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"needs the trace {name} in ../shared/traces")
    return path


def small_trace(arrival_s: list[float], **columns) -> Trace:
    """A trace of 10-token prompts and 5-token outputs."""
    count = len(arrival_s)
    defaults = {
        "name": "small",
        "source": "a test",
        "arrival_s": np.array(arrival_s, float),
        "prompt_tokens": np.full(count, 10),
        "output_tokens": np.full(count, 5),
    }
    return Trace(**{**defaults, **columns})


def full_trace() -> Trace:
    """Three requests with every column set, one of its lists empty."""
    return small_trace(
        [0.25, 0.25, 1.0 / 3.0],
        session=np.array([0, 1, 0]),
        turn=np.array([0, 0, 1]),
        client=np.array([0, 0, 1]),
        priority=np.array([2, -1, 0]),
        region=("here", "there", "here"),
        prefix_hashes=ragged([[7, 8], [], [7, 8, 9]]),
        prefix_block_tokens=4,
        prompt_ids=ragged([[1] * 10, [2] * 10, [3] * 10]),
        output_ids=ragged([[1] * 5, [2] * 5, [2**40] * 5]),
        texts=("one", "zwei, 'drei'", "\u2713"),
    )


def same(first: Trace, second: Trace) -> bool:
    """Whether two traces are equal in every field, bit for bit and with the same types."""
    return _flat(first) == _flat(second)


def _flat(trace: Trace) -> dict[str, object]:
    fields = dict(vars(trace))
    for name, value in list(fields.items()):
        if isinstance(value, np.ndarray):
            fields[name] = (str(value.dtype), value.tobytes())
        elif hasattr(value, "offsets"):
            fields[name] = tuple((str(a.dtype), a.tobytes()) for a in (value.values, value.offsets))
    return fields
