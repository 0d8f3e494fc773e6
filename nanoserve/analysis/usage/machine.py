"""How much of the chips is used: arithmetic against memory bandwidth, by hour and by load, and what is left at peak.

Buckets of telemetry are of one replica each; a figure of the service is their mean. Load is how many requests run, or,
where telemetry does not say, how many arrived in the bucket.

Series of `usage.machine.hours`: `hour` 0 to 23, `compute`, `bandwidth` (mean shares), `compute_p95`, `bandwidth_p95`.
Series of `usage.machine.load`: `load` (lower end of a bin), `compute`, `bandwidth`, `buckets`; `load_unit` is a value.
Next: `memory`.
"""

import numpy as np
import polars as pl

from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.service import Service

_PEAK = 0.99  # quantile of buckets that is called the peak: a single bucket is an accident
_BINS = 24
_SHARES = ("compute", "bandwidth")
_NOTHING_OF_CHIPS = "no telemetry has compute and bandwidth"


def machine_by_hour(service: Service) -> Finding:
    """Compute and bandwidth by the hour of the day, and the headroom at peak.

    Args:
      service: with telemetry of both.

    Returns:
      `usage.machine.hours`; rows are buckets.
    """
    key = "usage.machine.hours"
    table = _of_chips(service)
    if table is None:
        return not_computed(key, "Compute against bandwidth", _NOTHING_OF_CHIPS)
    if not service.dated:
        return not_computed(key, "Compute against bandwidth", "the logs do not say what hour it was")
    hours = service.hours(table["time_s"].to_numpy())
    shares = table.select(pl.Series("hour", hours), *_SHARES).drop_nulls()
    by_hour = shares.group_by("hour").agg(
        pl.col(*_SHARES).mean(),
        pl.col(*_SHARES).quantile(0.95).name.suffix("_p95"),
    )
    by_hour = by_hour.sort("hour")
    columns = {name: shares[name].to_numpy() for name in _SHARES}
    mean = {name: float(column.mean()) for name, column in columns.items()}
    peak = {name: float(np.quantile(column, _PEAK)) for name, column in columns.items()}
    scarce = max(peak, key=lambda name: peak[name])
    busiest = by_hour.sort(scarce, "hour", descending=[True, False])["hour"][0]
    return Finding(
        key=key,
        title=f"{scarce.capitalize()} is the scarcer: {peak[scarce]:.0%} of it in use at peak, {mean[scarce]:.0%} in "
        f"the mean",
        rows=shares.height,
        values={
            **{f"{name}_mean": value for name, value in mean.items()},
            **{f"{name}_peak": value for name, value in peak.items()},
            "headroom_at_peak": 1 - peak[scarce],
            "scarcer": scarce,
            "busiest_hour": int(busiest),
            **_memory_peak(table),
        },
        series={name: by_hour[name].to_numpy() for name in by_hour.columns},
        because=(
            f"Peak is the {_PEAK:.0%} quantile of buckets; {1 - peak[scarce]:.0%} of {scarce} is left there.",
            f"Busiest is the hour from {busiest}:00.",
        ),
    )


def _of_chips(service: Service) -> pl.DataFrame | None:
    """Telemetry, if it says how busy the chips were."""
    return service.telemetry if service.telemetry_has(*_SHARES) else None


def _memory_peak(table: pl.DataFrame) -> dict[str, float]:
    """Share of device memory in use at peak, where telemetry says how much there is."""
    if not {"memory_bytes", "memory_total_bytes"} <= set(table.columns):
        return {}
    share = (table["memory_bytes"] / table["memory_total_bytes"]).quantile(_PEAK)
    return {} if share is None else {"memory_peak": float(share)}


def machine_by_load(service: Service) -> Finding:
    """Compute and bandwidth against load: which of them grows, and how far it is from its end.

    Args:
      service: with telemetry of both.

    Returns:
      `usage.machine.load`; rows are buckets.
    """
    key = "usage.machine.load"
    table = _of_chips(service)
    if table is None:
        return not_computed(key, "Utilisation against load", _NOTHING_OF_CHIPS)
    load, unit = _load(service, table)
    shares = table.select(load.alias("load"), *_SHARES).drop_nulls().filter(pl.col("load") > 0)
    if shares.height < 2:
        return not_computed(key, "Utilisation against load", "no two buckets have any load")
    step = max(float(np.quantile(shares["load"].to_numpy(), 0.999)) / _BINS, 1e-9)
    place = (pl.col("load") / step).floor().clip(0, _BINS - 1)
    bins = (
        shares.group_by((place * step).alias("load"))
        .agg(pl.col(*_SHARES).mean(), pl.len().alias("buckets"))
        .sort("load")
    )
    slope = {name: _slope(shares["load"].to_numpy(), shares[name].to_numpy()) for name in _SHARES}
    faster = max(slope, key=lambda name: slope[name])
    return Finding(
        key=key,
        title=f"{faster.capitalize()} grows fastest with load: by {slope[faster]:.1%} of the chip for each {unit}",
        rows=shares.height,
        values={f"{name}_per_{unit.split()[0]}": value for name, value in slope.items()} | {"load_unit": unit},
        series={name: bins[name].to_numpy() for name in bins.columns},
    )


def _load(service: Service, table: pl.DataFrame) -> tuple[pl.Series, str]:
    """Load of every bucket, and what one of it is."""
    if service.telemetry_has("running"):
        return table["running"], "request running"
    starts_s = table["time_s"].unique().sort().to_numpy()
    edges_s = np.append(starts_s, starts_s[-1] + np.median(np.diff(starts_s)) if len(starts_s) > 1 else np.inf)
    arrived = np.histogram(service.floats("time_s"), edges_s)[0]
    return pl.Series(
        arrived[np.searchsorted(starts_s, table["time_s"].to_numpy())].astype(float)
    ), "arrival in a bucket"


def _slope(load: np.ndarray, share: np.ndarray) -> float:
    """Least squares through what an idle chip does."""
    spread = load - load.mean()
    return float((spread * share).sum() / max((spread**2).sum(), 1e-12))
