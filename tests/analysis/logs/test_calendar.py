"""Seconds since a start are the hours that a clock on the wall showed."""

import datetime
import zoneinfo

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import given

from nanoserve.analysis.logs.calendar import local_time, zone_name

ZONES = st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Europe/Berlin"])


@given(ZONES, st.integers(0, 2 * 366 * 86400))
def test_the_wall_shows_what_the_standard_library_says(zone, seconds):
    start = datetime.datetime(2026, 1, 1, 12, 30, tzinfo=zoneinfo.ZoneInfo(zone))
    wall = pl.DataFrame({"time_s": [float(seconds)]}).select(local_time(start)).item()
    moment = datetime.datetime.fromtimestamp(start.timestamp() + seconds, zoneinfo.ZoneInfo(zone))
    assert (wall.date(), wall.hour, wall.minute) == (moment.date(), moment.hour, moment.minute)


def test_a_time_without_a_named_zone_is_refused():
    offset = datetime.timezone(datetime.timedelta(hours=2))
    for start in (datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 1, tzinfo=offset)):
        with pytest.raises(ValueError, match="no named time zone"):
            zone_name(start)
