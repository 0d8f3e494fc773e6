"""CSV traces: Azure LLM inference (2023, 2024) and BurstGPT.

Every cell is read as text, so that a row that is wrong can be shown as it stands in the file, with its line.
"""

import io

import numpy as np
import polars as pl

from nanoserve.trace.columns import (
    best_format,
    check_times,
    check_tokens,
    dense,
    fail,
    no_time_unit,
    turns_in_order,
    units_per_s,
)
from nanoserve.trace.types import Trace

_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURST = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
_FORMATS = {"Azure CSV": _AZURE, "BurstGPT CSV": _BURST}


def read_csv(path: str, text: str, *, name: str, time_unit: str | None) -> Trace:
    """Reads a CSV trace of either format.

    Args:
      path: for messages. text: the file. name: of the trace.
      time_unit: of BurstGPT's timestamps; None means seconds.

    Raises:
      TraceError: at the line that is wrong. ConfigError: for a unit that does not apply.
    """
    header = text.split("\n", 1)[0].strip("\r").split(",")
    kind = best_format(path, 1, header, _FORMATS)
    frame = _frame(path, text, header)
    if kind == "Azure CSV":
        no_time_unit(path, time_unit, "TIMESTAMP", "dates")
        return _azure(path, name, frame)
    return _burst(path, name, frame, units_per_s(time_unit, "s"))


def _azure(path: str, name: str, frame: pl.DataFrame) -> Trace:
    """TIMESTAMP is a date with up to nine decimals; whole nanoseconds until the first one is taken off.

    Source: https://github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and ...2024.md.
    """
    lines = frame["line"].to_numpy()
    utc = frame["TIMESTAMP"].str.replace(r"(\+00:00|Z)$", "")
    dates = utc.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False)
    _refuse_nulls(path, frame, "TIMESTAMP", dates, "a date like 2023-11-16 18:15:46.6805900")
    since = dates.to_physical().to_numpy()
    arrival_s = (since - since[0]) / 1e9
    _check_sorted_from_first(path, lines, arrival_s)
    prompt, output = (_tokens(path, frame, column) for column in _AZURE[1:])
    return Trace(
        name=name, source=f"{path} (Azure CSV)", arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output
    )


def _burst(path: str, name: str, frame: pl.DataFrame, per_s: int) -> Trace:
    """A response of 0 tokens is a failed call: dropped, and counted in the trace's source. Starts at the first row.

    Source: https://github.com/HPMLL/BurstGPT, README, "Schema".
    """
    times = frame["Timestamp"].str.strip_chars().cast(pl.Float64, strict=False)
    _refuse_nulls(path, frame, "Timestamp", times, "a number")
    arrival_s = times.to_numpy() / per_s
    check_times(path, frame["line"].to_numpy(), arrival_s)
    output = _tokens(path, frame, "Response tokens", least=0)
    kept = output > 0
    if not kept.any():
        fail(path, 1, f"none of the {len(frame):,} requests has a response")
    prompt = _tokens(path, frame.filter(kept), "Request tokens")
    session = _sessions(frame.filter(kept))
    return Trace(
        name=name,
        source=f"{path} (BurstGPT CSV; {np.count_nonzero(~kept):,} failed requests dropped)",
        arrival_s=arrival_s[kept] - arrival_s[0],
        prompt_tokens=prompt,
        output_tokens=output[kept],
        session=session,
        turn=None if session is None else turns_in_order(session),
    )


def _sessions(frame: pl.DataFrame) -> np.ndarray | None:
    """Numbers of the sessions; an API call, which has no id, is a session of its own."""
    if "Session ID" not in frame.columns:
        return None
    rows = enumerate(frame["Session ID"].to_list())
    return dense(("id", value) if value else ("row", row) for row, value in rows)


def _frame(path: str, text: str, header: list[str]) -> pl.DataFrame:
    """All cells as text, one row per line that is not blank, with its line number in the column `line`."""
    source = io.BytesIO(text.replace("\r\n", "\n").encode())
    try:
        # Without quoting a row is a line, whatever garbage it holds.
        frame = pl.read_csv(source, infer_schema=False, quote_char=None)
    except pl.exceptions.PolarsError as error:
        _refuse_wide_line(path, text, len(header))
        fail(path, 1, f"cannot be read as CSV: {error}")
    frame = frame.with_row_index("line", offset=2).with_columns(pl.col("line").cast(pl.Int64))
    frame = frame.filter(~pl.all_horizontal(pl.exclude("line").is_null()))
    if frame.is_empty():
        fail(path, 1, "a header and no requests")
    return frame


def _refuse_wide_line(path: str, text: str, columns: int) -> None:
    for line, row in enumerate(text.split("\n"), start=1):
        if (found := row.count(",") + 1) > columns:
            fail(path, line, f"{found} columns where the header has {columns}")


def _tokens(path: str, frame: pl.DataFrame, column: str, least: int = 1) -> np.ndarray:
    values = frame[column].str.strip_chars().cast(pl.Int64, strict=False)
    _refuse_nulls(path, frame, column, values, "a whole number")
    tokens = values.to_numpy()
    check_tokens(path, frame["line"].to_numpy(), column, tokens, least)
    return tokens


def _refuse_nulls(path: str, frame: pl.DataFrame, column: str, values: pl.Series, wanted: str) -> None:
    if values.null_count():
        row = int(values.is_null().arg_max())  # type: ignore[arg-type]
        cell = frame[column][row]
        what = "nothing: the line is cut short" if cell is None else f"'{cell[:60]}'"
        fail(path, int(frame["line"][row]), f"{column} is {what}; wanted {wanted}")


def _check_sorted_from_first(path: str, lines: np.ndarray, arrival_s: np.ndarray) -> None:
    """As `check_times`, for times that were taken relative to the first: one before it is unsorted, not negative."""
    check_times(path, lines, arrival_s - min(0.0, float(arrival_s.min())))
