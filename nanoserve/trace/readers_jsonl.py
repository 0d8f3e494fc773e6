"""JSONL traces, one request per line: Mooncake and agent (prefix hashes), ShareGPT with token ids, prompts as text."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from nanoserve.specs.errors import TraceError
from nanoserve.trace.columns import (
    best_format,
    check_times,
    dense,
    fail,
    missing_message,
    no_time_unit,
    ragged,
    turns_in_order,
    units_per_s,
)
from nanoserve.trace.types import MAX_TOKENS, Ragged, Trace

_MOONCAKE = ("timestamp", "input_length", "output_length")
_SHAREGPT = ("arrival_time_ns", "input_toks", "output_toks")
_PROMPTS = ("prompt", "output_tokens")
_FORMATS = {"Mooncake JSONL": _MOONCAKE, "ShareGPT JSONL": _SHAREGPT, "prompt JSONL": _PROMPTS}
Encode = Callable[[str], list[int]]
_MAX_BLOCK_TOKENS = 1 << 16
_INT64 = range(-(1 << 63), 1 << 63)


@dataclasses.dataclass(frozen=True, slots=True)
class _Record:
    """One line of the file."""

    path: str
    line: int
    fields: dict[str, Any]

    def refuse(self, key: str, wanted: str) -> None:
        fail(self.path, self.line, f"{key} is {json.dumps(self.fields[key])[:60]}; wanted {wanted}")

    def tokens(self, key: str) -> int:
        """A length: a JSON integer from 1 to `MAX_TOKENS`."""
        value = self.fields[key]
        if type(value) is not int or not 1 <= value <= MAX_TOKENS:
            self.refuse(key, f"a whole number from 1 to {MAX_TOKENS:,}")
        return value

    def time(self, key: str) -> int | float:
        """A time, as written."""
        value = self.fields[key]
        if type(value) not in (int, float):
            self.refuse(key, "a number")
        return value

    def text(self, key: str) -> str:
        """Text that is not empty."""
        value = self.fields[key]
        if type(value) is not str or not value:
            self.refuse(key, "text that is not empty")
        return value

    def integers(self, key: str) -> list[int]:
        """A list of 64-bit integers."""
        value = self.fields[key]
        if type(value) is not list or not all(type(item) is int and item in _INT64 for item in value):
            self.refuse(key, "a list of 64-bit integers")
        return value


def read_jsonl(path: str, text: str, *, name: str, time_unit: str | None, encode: Encode | None = None) -> Trace:
    """Reads a JSONL trace of any of the formats.

    Args:
      path: for messages. text: the file. name: of the trace.
      time_unit: of `timestamp`; None means milliseconds if all are written as integers (Mooncake), else seconds.
      encode: text to token ids, for prompts that are text.

    Raises:
      TraceError: at the line that is wrong. ConfigError: for a unit that does not apply.
    """
    records = _records(path, text)
    first = next(records)
    kind = best_format(path, first.line, first.fields, _FORMATS)
    required = _FORMATS[kind]
    rows = [_complete(record, required) for record in itertools.chain([first], records)]
    if kind == "Mooncake JSONL":
        return _mooncake(path, name, rows, time_unit)
    if kind == "prompt JSONL":
        no_time_unit(path, time_unit, "arrival_s", "seconds")
        return _prompts(path, name, rows, encode)
    no_time_unit(path, time_unit, "arrival_time_ns", "nanoseconds")
    return _sharegpt(path, name, rows)


def _mooncake(path: str, name: str, rows: list[_Record], time_unit: str | None) -> Trace:
    """Ids are kept for whole blocks only: the id of a last, partial block says nothing about a longer prompt.

    Source: https://github.com/kvcache-ai/Mooncake, FAST25-release/traces; https://github.com/LMCache/lmcache-agent-trace.
    """
    times = [row.time("timestamp") for row in rows]
    fractional = any(type(value) is float for value in times)
    arrival_s = _seconds(path, rows, times, units_per_s(time_unit, "s" if fractional else "ms"))
    prompt = np.array([row.tokens("input_length") for row in rows], np.int64)
    hashes, block_tokens = _whole_blocks(rows, prompt)
    session, turn = _sessions(rows)
    return Trace(
        name=name,
        source=f"{path} (Mooncake JSONL)",
        arrival_s=arrival_s,
        prompt_tokens=prompt,
        output_tokens=np.array([row.tokens("output_length") for row in rows], np.int64),
        session=session,
        turn=turn,
        prefix_hashes=hashes,
        prefix_block_tokens=block_tokens,
    )


def _sharegpt(path: str, name: str, rows: list[_Record]) -> Trace:
    """Source: https://github.com/casys-kaist/LLMServingSim, `dataset/`."""
    times = [row.time("arrival_time_ns") for row in rows]
    return Trace(
        name=name,
        source=f"{path} (ShareGPT JSONL)",
        arrival_s=_seconds(path, rows, times, units_per_s("ns", "ns")),
        prompt_tokens=np.array([row.tokens("input_toks") for row in rows], np.int64),
        output_tokens=np.array([row.tokens("output_toks") for row in rows], np.int64),
        prompt_ids=_token_ids(rows, "input_tok_ids", "input_toks"),
        output_ids=_token_ids(rows, "output_tok_ids", "output_toks"),
    )


def _prompts(path: str, name: str, rows: list[_Record], encode: Encode | None) -> Trace:
    """Our own format: `prompt`, `output_tokens` and, where requests do not all come at once, `arrival_s`."""
    if encode is None:
        raise TraceError(
            f"{path}: has prompts as text, and there is no tokenizer to count their tokens. Name the model's weights "
            "in Experiment.weights (a folder with tokenizer.json, a GGUF file, or package:NAME)"
        )
    timed = _in_all(rows, "arrival_s")
    texts = tuple(row.text("prompt") for row in rows)
    ids = [encode(text) for text in texts]
    return Trace(
        name=name,
        source=f"{path} (prompt JSONL)",
        arrival_s=_seconds(path, rows, [row.time("arrival_s") if timed else 0 for row in rows], 1),
        prompt_tokens=np.array([len(row) for row in ids], np.int64),
        output_tokens=np.array([row.tokens("output_tokens") for row in rows], np.int64),
        prompt_ids=ragged(ids),
        texts=texts,
    )


def _records(path: str, text: str) -> Iterator[_Record]:
    lines = text.split("\n")
    for line, row in enumerate(lines, start=1):
        if not row.strip():
            continue
        try:
            fields = json.loads(row)
        except (ValueError, RecursionError) as error:
            last = not any(later.strip() for later in lines[line:])
            fail(path, line, f"not JSON ({error})" + (": the last line is cut short" if last else ""))
        if type(fields) is not dict:
            fail(path, line, f"{row.strip()[:60]} is not a JSON object")
        yield _Record(path, line, fields)


def _complete(record: _Record, required: Iterable[str]) -> _Record:
    missing = [key for key in required if key not in record.fields]
    if missing:
        fail(record.path, record.line, missing_message(missing, record.fields))
    return record


def _seconds(path: str, rows: list[_Record], times: list[int | float], per_s: int) -> np.ndarray:
    try:
        arrival_s = np.array([value / per_s for value in times], np.float64)  # int / int is correctly rounded
    except OverflowError:
        raise TraceError(f"{path}: a timestamp is beyond the range of floating point") from None
    check_times(path, np.array([row.line for row in rows]), arrival_s)
    return arrival_s


def _sessions(rows: list[_Record]) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not _in_all(rows, "session_id"):
        return None, None
    for row in rows:
        if type(row.fields["session_id"]) not in (str, int):
            row.refuse("session_id", "text or a whole number")
    session = dense(row.fields["session_id"] for row in rows)
    if not _in_all(rows, "turn"):
        return session, turns_in_order(session)
    for row in rows:
        if type(row.fields["turn"]) is not int or not 0 <= row.fields["turn"] <= MAX_TOKENS:
            row.refuse("turn", "a whole number >= 0")
    turn = np.array([row.fields["turn"] for row in rows], np.int64)
    return session, turn - turn.min()


def _whole_blocks(rows: list[_Record], prompt: np.ndarray) -> tuple[Ragged | None, int | None]:
    if not _in_all(rows, "hash_ids"):
        return None, None
    ids = [row.integers("hash_ids") for row in rows]
    block_tokens = _block_tokens(rows, prompt, np.array([len(row) for row in ids]))
    whole = (prompt // block_tokens).tolist()
    return ragged([row[:count] for row, count in zip(ids, whole, strict=True)]), block_tokens


def _block_tokens(rows: list[_Record], prompt: np.ndarray, blocks: np.ndarray) -> int:
    """The smallest power of two that explains every row's number of ids, with the last partial block or without it."""
    sizes = [1 << exponent for exponent in range(_MAX_BLOCK_TOKENS.bit_length())]
    fits = [size_fits for size in sizes for size_fits in (-(-prompt // size) == blocks, prompt // size == blocks)]
    for index, fit in enumerate(fits):
        if fit.all():
            return sizes[index // 2]
    closest = max(range(len(fits)), key=lambda index: np.count_nonzero(fits[index]))
    row = int(np.argmin(fits[closest]))
    fail(
        rows[row].path,
        rows[row].line,
        f"{blocks[row]} hash_ids for {prompt[row]} prompt tokens; others have blocks of {sizes[closest // 2]} tokens",
    )


def _token_ids(rows: list[_Record], ids_key: str, count_key: str) -> Ragged | None:
    if not _in_all(rows, ids_key):
        return None
    for row in rows:
        found = len(row.integers(ids_key))
        if found != row.fields[count_key]:
            fail(row.path, row.line, f"{count_key} is {row.fields[count_key]}, but {ids_key} has {found} entries")
    return ragged([row.fields[ids_key] for row in rows])


def _in_all(rows: list[_Record], key: str) -> bool:
    """Whether an optional field is there. It is in every row or in none."""
    present = key in rows[0].fields
    for row in rows:
        if (key in row.fields) != present:
            fail(row.path, row.line, f"{key} is {'missing' if present else 'here'}, unlike on line {rows[0].line}")
    return present
