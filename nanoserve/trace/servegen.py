"""Traces generated from ServeGen's fitted clients: who sends how much, how unevenly, and how long.

ServeGen describes a production service as clients, each with a rate and a gap distribution per window of the day and
length distributions per quarter of it. Lengths are read client by client, so memory holds one client's at a time.

Source: Xiang et al., ServeGen, NSDI 2026; data from https://github.com/alibaba/ServeGen (Apache-2.0).
"""

import csv
import dataclasses
import io
import json
import lzma
import math
import re
import tarfile
from collections.abc import Iterator

import numpy as np

from nanoserve.specs.errors import ConfigError, TraceError
from nanoserve.trace.columns import dense, fail, missing_message
from nanoserve.trace.files import content_of, text_of
from nanoserve.trace.types import Trace

WINDOW_S = 600
DAY_S = 86400
_COLUMNS = ("client", "window_start_s", "rate_rps", "pattern", "param1")
_FIELDS = ("input_tokens", "output_tokens")
_Histograms = tuple[tuple[np.ndarray, np.ndarray], ...]
_MEMBER = re.compile(r"chunk-(\d+)-dataset\.json$")


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """Ten minutes of one client: how often it sends and how its gaps are spread (`shape` of a Gamma or Weibull)."""

    start_s: int
    rate_rps: float
    pattern: str
    shape: float

    def times_s(self, expected: float, rng: np.random.Generator) -> np.ndarray:
        """Sorted arrivals within the window: `expected` of them on average, gaps in the fitted proportions.

        The count is fixed first. A renewal process started afresh in each window would send too much: with the fitted
        spreads (up to 20 times the mean gap) it starts in a burst more often than not.
        """
        count = math.floor(expected + rng.random())
        gaps = rng.gamma(self.shape, size=count + 1) if self.pattern == "Gamma" else rng.weibull(self.shape, count + 1)
        reached = np.cumsum(np.maximum(gaps, 1e-300))  # a tiny shape underflows to 0
        return self.start_s + WINDOW_S * reached[:-1] / reached[-1]


def generate(
    rates_path: str,
    lengths_path: str,
    *,
    start_s: float = 0.0,
    end_s: float = DAY_S,
    rate_rps: float | None = None,
    seed: int = 0,
) -> Trace:
    """Generates the requests of a part of the fitted day; its `client` column says who sent what.

    Args:
      rates_path: CSV with columns client, window_start_s, rate_rps, pattern, param1 (the shape).
      lengths_path: tar archive (gzip or xz) of `chunk-CLIENT-dataset.json`, period start -> length histograms.
      start_s, end_s: which part of the day; times in the trace count from `start_s`.
      rate_rps: mean rate of all clients together over that part, which scales them equally; None keeps the fitted one.
      seed: at least 0. A client's requests depend on it and on the client alone.

    Raises:
      ConfigError: for an empty part of the day or a rate that cannot be. TraceError: if a file cannot be used.
    """
    if not (0 <= start_s < end_s and (rate_rps is None or 0 < rate_rps < math.inf) and seed >= 0):
        raise ConfigError(f"ServeGen from {start_s} s to {end_s} s at {rate_rps} requests/s, seed {seed}: out of range")
    windows = _windows(rates_path, start_s, end_s)
    scale = 1.0 if rate_rps is None else rate_rps * (end_s - start_s) / _expected(windows, start_s, end_s)
    parts = []
    for client, periods in _lengths(lengths_path):
        rng = np.random.default_rng((seed, client))
        parts += [_requests(client, window, periods, scale, rng) for window in windows.pop(client, ())]
    if windows:
        raise TraceError(f"{lengths_path}: no lengths for clients {sorted(windows)[:10]} of {rates_path}")
    arrival_s, prompt, output, client = np.concatenate(parts, axis=1)
    order = np.argsort(arrival_s, kind="stable")
    order = order[(arrival_s[order] >= start_s) & (arrival_s[order] < end_s)]
    return Trace(
        name="servegen",
        source=f"ServeGen clients of {rates_path} and {lengths_path}, {start_s} s to {end_s} s, seed {seed}",
        arrival_s=arrival_s[order] - start_s,
        prompt_tokens=prompt[order].astype(np.int64),
        output_tokens=output[order].astype(np.int64),
        client=dense(client[order].tolist()),
    ).validated()


def _requests(
    client: int, window: _Window, periods: dict[int, _Histograms], scale: float, rng: np.random.Generator
) -> np.ndarray:
    """One window's requests; float64 [4, N]: arrival_s, prompt, output, client."""
    arrival_s = window.times_s(window.rate_rps * WINDOW_S * scale, rng)
    begun = [start for start in periods if start <= window.start_s]
    lengths = periods[max(begun) if begun else min(periods)]
    tokens = [values[np.searchsorted(shares, rng.random(len(arrival_s)))] for values, shares in lengths]
    return np.array([arrival_s, *tokens, np.full(len(arrival_s), client)])


def _expected(windows: dict[int, list[_Window]], start_s: float, end_s: float) -> float:
    """Requests that the fitted rates send from `start_s` to `end_s`."""
    all_windows = (window for client in windows.values() for window in client)
    return sum(w.rate_rps * (min(end_s, w.start_s + WINDOW_S) - max(start_s, w.start_s)) for w in all_windows)


def _windows(path: str, start_s: float, end_s: float) -> dict[int, list[_Window]]:
    """Client -> its windows that overlap the part of the day."""
    rows = csv.DictReader(io.StringIO(text_of(path, content_of(path))))
    missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise TraceError(f"{path}:1: not ServeGen's rates: {missing_message(missing, rows.fieldnames or ())}")
    windows: dict[int, list[_Window]] = {}
    for row in rows:
        client, window = _window(path, rows.line_num, row)
        if window.start_s < end_s and window.start_s + WINDOW_S > start_s and window.rate_rps > 0:
            windows.setdefault(client, []).append(window)
    if not windows:
        raise TraceError(f"{path}: no client sends anything from {start_s} s to {end_s} s of the day")
    return windows


def _window(path: str, line: int, row: dict[str, str]) -> tuple[int, _Window]:
    try:
        client = int(row["client"])
        window = _Window(int(row["window_start_s"]), float(row["rate_rps"]), row["pattern"], float(row["param1"]))
    except (TypeError, ValueError) as error:
        fail(path, line, f"{error}. Is the line complete?")
    in_range = client >= 0 and 0 <= window.rate_rps < math.inf and 0 < window.shape < math.inf
    if not in_range or window.pattern not in ("Gamma", "Weibull"):
        fail(path, line, f"client {client}, {window}: wanted a Gamma or Weibull with numbers >= 0")
    return client, window


def _lengths(path: str) -> Iterator[tuple[int, dict[int, _Histograms]]]:
    """Each client with its periods of the day: start -> (prompt, output) as (tokens, cumulated shares)."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                found, file = _MEMBER.search(member.name), archive.extractfile(member)
                if found and file and (periods := _periods(json.load(file))):
                    yield int(found.group(1)), periods
    except (OSError, EOFError, ValueError, LookupError, tarfile.TarError, lzma.LZMAError) as error:
        raise TraceError(f"{path}: not a whole archive of ServeGen's length data ({error!r})") from None


def _periods(histograms: dict[str, dict[str, str]]) -> dict[int, _Histograms]:
    """Without the periods in which the client sent nothing and its histograms are empty."""
    filled = {start: fields for start, fields in histograms.items() if all(fields[key] != "{}" for key in _FIELDS)}
    return {int(start): tuple(_histogram(fields[key]) for key in _FIELDS) for start, fields in filled.items()}


def _histogram(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Parses `{tokens: share, ...}`, a Python dict written as text, without evaluating it."""
    tokens, shares = np.array(text.strip("{}").replace(":", ",").split(","), float).reshape(-1, 2).T
    cumulated = np.cumsum(shares)
    return tokens, cumulated / cumulated[-1]
