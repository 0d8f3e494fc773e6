"""The result file of vLLM's serving benchmark (`vllm bench serve --save-result --save-detailed`) as a trace.

Requests stand in the file in the order of the data set; the trace is sorted by the time they were sent. Failed requests
are dropped and counted in the trace's source.
"""

from typing import Any

import numpy as np

from nanoserve.specs.errors import TraceError, nearest
from nanoserve.trace.types import MAX_TOKENS, Trace


def is_vllm_result(document: Any) -> bool:
    """Whether a JSON document is such a result, detailed or not."""
    return isinstance(document, dict) and ("input_lens" in document or "total_input_tokens" in document)


def read_vllm_result(path: str, result: dict[str, Any], *, name: str) -> Trace:
    """Makes a trace of a benchmark's result.

    With `start_times` (newer vLLM writes them) the times are those at which requests were sent. Without, requests are
    spaced evenly at `request_rate`, or all sent at 0 if it is `inf`, and the trace's source says so.

    Args:
      path: for messages. result: the JSON object. name: of the trace.

    Returns:
      The requests that succeeded.

    Raises:
      TraceError: naming the list and the index that is wrong.

    Source: https://github.com/vllm-project/vllm, vllm/benchmarks/serve.py, `benchmark`.
    """
    if "input_lens" not in result or "output_lens" not in result:
        raise TraceError(f"{path}: no input_lens and output_lens. Run the benchmark again with --save-detailed")
    prompt = _integers(path, result, "input_lens")
    output = _integers(path, result, "output_lens", count=len(prompt))
    errors = result.get("errors") or [""] * len(prompt)
    _check_count(path, "errors", errors, len(prompt))
    sent_s, how = _sent_s(path, result, len(prompt))
    kept = np.array([not error for error in errors], bool) & (output > 0)
    if not kept.any():
        raise TraceError(f"{path}: none of the {len(prompt)} requests succeeded")
    _check_prompts(path, prompt, kept)
    order = np.flatnonzero(kept)[np.argsort(sent_s[kept], kind="stable")]
    return Trace(
        name=name,
        source=f"{path} (vLLM benchmark result; {how}; {np.count_nonzero(~kept)} failed requests dropped)",
        arrival_s=sent_s[order] - sent_s.min(),
        prompt_tokens=prompt[order],
        output_tokens=output[order],
    )


def _sent_s(path: str, result: dict[str, Any], count: int) -> tuple[np.ndarray, str]:
    if "start_times" not in result:
        return _spaced_s(path, result.get("request_rate"), count)
    values = _list(path, result, "start_times", count)
    for index, value in enumerate(values):
        if type(value) not in (int, float) or not np.isfinite(value):
            raise TraceError(f"{path}: start_times[{index}] is {value!r}; wanted seconds")
    return np.array(values, np.float64), "times as sent"


def _spaced_s(path: str, rate: Any, count: int) -> tuple[np.ndarray, str]:
    if rate == "inf" or rate == float("inf"):
        return np.zeros(count), "no start_times, request_rate inf: all sent at 0"
    if type(rate) not in (int, float) or not rate > 0:
        raise TraceError(
            f"{path}: neither start_times nor a positive request_rate. Run the benchmark with a newer vLLM"
        )
    return np.arange(count) / rate, f"no start_times: spaced evenly at {rate} requests/s"


def _integers(path: str, result: dict[str, Any], key: str, count: int | None = None) -> np.ndarray:
    values = _list(path, result, key, count)
    for index, value in enumerate(values):
        if type(value) is not int or not 0 <= value <= MAX_TOKENS:
            raise TraceError(f"{path}: {key}[{index}] is {value!r}; wanted a whole number up to {MAX_TOKENS:,}")
    return np.array(values, np.int64)


def _list(path: str, result: dict[str, Any], key: str, count: int | None) -> list[Any]:
    values = result[key]
    if type(values) is not list:
        raise TraceError(f"{path}: {key} is not a list.{nearest(key, result)}")
    _check_count(path, key, values, count)
    return values


def _check_count(path: str, key: str, values: Any, count: int | None) -> None:
    if count is not None and (type(values) is not list or len(values) != count):
        raise TraceError(f"{path}: {key} has not the {count} entries that input_lens has. Is the file complete?")


def _check_prompts(path: str, prompt: np.ndarray, kept: np.ndarray) -> None:
    empty = np.flatnonzero(kept & (prompt < 1))
    if len(empty):
        raise TraceError(f"{path}: input_lens[{empty[0]}] is 0, yet the request succeeded; wanted at least 1 token")
