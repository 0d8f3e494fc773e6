"""How far the clocks of the logs are apart, and when a log is moved.

The api log's clock is the one that counts. An error is expected at the end of its request and an application's entry at
its arrival, so the median difference over requests that both logs know estimates an offset, and the middle half of the
differences says how sure it is. Telemetry knows no requests: there the lag is taken at which its load follows the
arrivals best, and counts if it is longer than slow requests take. A log is moved where the offset is beyond doubt
(`Offset.clear`), and where it is not, that is said.
"""

import dataclasses

import numpy as np
import polars as pl

_LEAST_S, _LEAST_SPREADS, _LEAST_MATCHED = 1.0, 4.0, 10
_MATCHED_ROWS = 100_000  # the median of so many differences needs no more
_MOST_LAG_S = 26 * 3600.0  # more than between any two time zones' clocks
_LEAST_BUCKETS = 100
_LEAST_GAIN, _LEAST_CORRELATION = 0.1, 0.3
_LOAD = ("running", "compute", "bandwidth", "blocks_used", "queue")
"""Telemetry columns that follow the load, best first."""


@dataclasses.dataclass(frozen=True)
class Offset:
    """How far a log's clock is ahead of the api log's.

    Attributes:
      log: which. seconds: ahead, negative behind. clear: beyond what the differences' spread could explain.
      evidence: what it was estimated from, in words.
    """

    log: str
    seconds: float
    clear: bool
    evidence: str

    def sentence(self) -> str:
        """As a note."""
        if abs(self.seconds) < 0.0005:
            return f"the {self.log} log's clock agrees with the api log's ({self.evidence})"
        way = "ahead of" if self.seconds > 0 else "behind"
        done = "moved" if self.clear else "not moved: it is no clear offset"
        return f"the {self.log} log's clock is {abs(self.seconds):,.3f} s {way} the api log's ({self.evidence}); {done}"


def offset_by_requests(log: str, other: pl.LazyFrame, api: pl.LazyFrame) -> Offset | None:
    """The offset of a log that names requests.

    Args:
      log: `app` or `errors`. other: that log. api: the api log. Both with times in `time_ns`.

    Returns:
      None where fewer than ten requests are in both, or there are no times or ids to compare.
    """
    theirs, ours = other.collect_schema().names(), api.collect_schema().names()
    if not {"time_ns", "request_id"} <= set(theirs) or "request_id" not in ours:
        return None
    expected = pl.col("time_ns")
    if log == "errors" and "latency_s" in ours:
        expected = expected + (pl.col("latency_s").fill_null(0.0) * 1e9).round().cast(pl.Int64)
    some = other.filter(pl.col("request_id").is_not_null()).select("request_id", "time_ns").head(_MATCHED_ROWS)
    pairs = some.join(api.select("request_id", expected.alias("expected")), on="request_id")
    late_s = pairs.select((pl.col("time_ns") - pl.col("expected")) / 1e9).collect(engine="streaming").to_series()
    if len(late_s) < _LEAST_MATCHED:
        return None
    low, middle, high = np.quantile(late_s.to_numpy(), (0.25, 0.5, 0.75)).tolist()
    clear = abs(middle) >= max(_LEAST_S, _LEAST_SPREADS * (high - low))
    evidence = f"median of {len(late_s):,} requests in both, the middle half within {high - low:.3g} s"
    return Offset(log, middle, clear, evidence)


def offset_by_load(telemetry: pl.LazyFrame, api: pl.LazyFrame) -> Offset | None:
    """The offset of telemetry, to a bucket: the lag at which its load follows the tokens that arrive best.

    Args:
      telemetry, api: with times in `time_ns`.

    Returns:
      None where there is no column that follows load, or fewer than a hundred buckets.
    """
    names = telemetry.collect_schema().names()
    column = next((name for name in _LOAD if name in names), None)
    if column is None:
        return None
    buckets = telemetry.group_by("time_ns").agg(pl.col(column).mean()).drop_nulls().sort("time_ns").collect()
    times_ns = buckets["time_ns"].to_numpy()
    if len(times_ns) < _LEAST_BUCKETS:
        return None
    width_ns = int(np.median(np.diff(times_ns)))
    tokens = (pl.col("prompt_tokens") + pl.col("response_tokens")).sum().alias("tokens")
    arrived = api.group_by((pl.col("time_ns") // width_ns).alias("bucket")).agg(tokens).collect(engine="streaming")
    first = int(min(times_ns[0] // width_ns, arrived["bucket"].min()))  # type: ignore[type-var]
    size = int(max(times_ns[-1] // width_ns, arrived["bucket"].max())) - first + 1  # type: ignore[type-var]
    load, work = np.zeros(size), np.zeros(size)
    load[times_ns // width_ns - first] = buckets[column].to_numpy()
    work[arrived["bucket"].to_numpy() - first] = arrived["tokens"].to_numpy()
    lag, best, still = _best_lag(load, work, round(_MOST_LAG_S * 1e9 / width_ns))
    sure = best >= _LEAST_CORRELATION and best - still >= _LEAST_GAIN
    clear = sure and abs(lag) >= 2 and abs(lag) * width_ns / 1e9 > _slow_s(api)
    evidence = f"{column} follows arriving tokens with a correlation of {best:.2f} at this lag, {still:.2f} at none"
    return Offset("telemetry", lag * width_ns / 1e9 if clear else 0.0, clear, evidence)


def _slow_s(api: pl.LazyFrame) -> float:
    """The latency of slow requests: work may follow arrivals by so much on one clock."""
    if "latency_s" not in api.collect_schema().names():
        return 0.0
    return api.select(pl.col("latency_s").quantile(0.99)).collect(engine="streaming").item() or 0.0


def _best_lag(load: np.ndarray, work: np.ndarray, most: int) -> tuple[int, float, float]:
    """Buckets by which `load` is behind `work`, the correlation there, and that at no lag."""
    size = 1 << (2 * len(load) - 1).bit_length()
    centred = [np.fft.rfft(x - x.mean(), size) for x in (load, work)]
    scale = len(load) * load.std() * work.std()
    if scale == 0.0:
        return 0, 0.0, 0.0
    correlation = np.fft.irfft(centred[0] * np.conj(centred[1]), size) / scale
    lags = np.arange(-min(most, len(load) - 1), min(most, len(load) - 1) + 1)
    values = correlation[lags]
    best = int(np.argmax(values))
    return int(lags[best]), float(values[best]), float(correlation[0])
