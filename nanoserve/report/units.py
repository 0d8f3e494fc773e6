"""Numbers for people: seconds, counts, rates and shares as short text. Nothing is converted before this point."""

import math

MISSING = "\N{EN DASH}"
_TIME_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_LONGEST_IN_SECONDS = 600.0  # above this a duration reads better in minutes


def time(seconds: float) -> str:
    """`0.0123` as `12.3 ms`; below ten minutes never in minutes."""
    if not math.isfinite(seconds):
        return MISSING
    size, unit = time_unit(seconds)
    return f"{significant(seconds / size)} {unit}"


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a duration is written: its length in seconds, and its name."""
    if seconds >= _LONGEST_IN_SECONDS:
        return next(entry for entry in _TIME_UNITS if seconds >= entry[0])
    return next((entry for entry in _TIME_UNITS[2:] if seconds >= entry[0]), _TIME_UNITS[2 if seconds == 0 else -1])


def count(number: float) -> str:
    """`58212` as `58,212`."""
    return f"{number:,.0f}" if math.isfinite(number) else MISSING


def short(number: float) -> str:
    """`989e12` as `989 T`: three digits and a prefix (powers of 1,000)."""
    if not math.isfinite(number):
        return MISSING
    for size, prefix in _PREFIXES:
        if abs(number) >= size:
            return f"{significant(number / size)} {prefix}"
    return significant(number)


def tick(number: float) -> str:
    """`short` for an axis: no digits that say nothing."""
    for size, prefix in _PREFIXES:
        if abs(number) >= size:
            return f"{number / size:.4g} {prefix}"
    return f"{number:.4g}"


def significant(number: float) -> str:
    """Three significant digits, never in exponent form, thousands separated."""
    if not math.isfinite(number):
        return MISSING
    if number == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:,.{min(digits, 9)}f}"


def share(part: float) -> str:
    """`0.4567` as `45.7%`; what is not quite nothing or not quite everything is not rounded to it."""
    if not math.isfinite(part):
        return MISSING
    if 0 < part < 0.0005:
        return "<0.1%"
    if 0.9995 < part < 1:
        return ">99.9%"
    return f"{part:.0%}" if part in (0, 1) else f"{part:.1%}"


def ratio(part: float, whole: float) -> float:
    """`part / whole`, NaN where the whole is nothing."""
    return part / whole if whole else math.nan
