"""Hours and weekdays of seconds since a start, in the start's time zone, daylight saving included.

Invariant: adding seconds is done in UTC and only the result is read in the time zone, so an hour that a clock repeats
or leaves out is counted as the clock on the wall showed it.
"""

import datetime
import zoneinfo

import polars as pl


def zone_name(start: datetime.datetime) -> str:
    """The name of an aware time's zone, as calendars list it.

    Raises:
      ValueError: the time is naive, or its zone is an offset without a name.
    """
    if isinstance(start.tzinfo, zoneinfo.ZoneInfo) and start.tzinfo.key:
        return start.tzinfo.key
    if start.tzinfo is not None and start.utcoffset() == datetime.timedelta(0):
        return "UTC"
    raise ValueError(f"{start!r} is in no named time zone")


def local_time(start: datetime.datetime, time_s: str = "time_s") -> pl.Expr:
    """The time on the wall, as an expression: `.dt.hour()` and `.dt.weekday()` (Monday is 1) can be asked of it.

    Args:
      start: what second 0 is. time_s: the column of seconds since then.
    """
    since_epoch_us = round(start.timestamp() * 1e6)
    utc = ((pl.col(time_s) * 1e6).round().cast(pl.Int64) + since_epoch_us).cast(pl.Datetime("us", "UTC"))
    return utc.dt.convert_time_zone(zone_name(start))
