import math

import pytest

from nanoserve.report import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (4.2e-6, "4.20 µs"),
        (0.0123, "12.3 ms"),
        (0.3058, "306 ms"),
        (2.0, "2.00 s"),
        (599.0, "599 s"),
        (601.0, "10.0 min"),
        (7200.0, "2.00 h"),
        (math.nan, units.MISSING),
    ],
)
def test_a_duration_takes_the_unit_it_reads_best_in(seconds, text):
    assert units.time(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(989e12, "989 T"), (3.35e12, "3.35 T"), (1500.0, "1.50 k"), (12.0, "12.0"), (math.inf, units.MISSING)],
)
def test_a_large_number_gets_a_prefix(number, text):
    assert units.short(number) == text


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.4567, "45.7%"),
        (1e-6, "<0.1%"),
        (0.99999, ">99.9%"),
        (1.011, "101.1%"),
        (math.nan, units.MISSING),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(part, text):
    assert units.share(part) == text
