"""Choices and curves that read the same for numbers, NumPy arrays, and JAX values under a trace.

Invariant: a Python number in gives a Python number out, computed without NumPy (that path prices single steps and has
to be fast); an array goes to its own library, found by `__array_namespace__`, so neither NumPy nor JAX is imported
here.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any

Number = Any  # int or float, or an array of them


def where(condition: Number, yes: Number, no: Number) -> Number:
    """`yes` where `condition` holds, else `no`."""
    if hasattr(condition, "__array_namespace__"):
        return condition.__array_namespace__().where(condition, yes, no)
    return yes if condition else no


def minimum(value: Number, limit: Number) -> Number:
    """The smaller of a value and a limit."""
    return where(value < limit, value, limit)


def maximum(value: Number, limit: Number) -> Number:
    """The larger of a value and a limit."""
    return where(value > limit, value, limit)


def half(even: Number) -> Number:
    """Half of an even number: integers stay integers, and floats have a slope."""
    floating = not isinstance(even, int) and (isinstance(even, float) or even.dtype.kind == "f")
    return even / 2 if floating else even // 2


def interpolate_log2(x: Number, points: Sequence[tuple[float, float]]) -> Number:
    """A curve through `points` (x ascending), straight lines over log2 x, flat beyond its ends.

    Args:
      x: positive.
      points: (x, y) pairs.
    """
    if hasattr(x, "__array_namespace__"):
        library = x.__array_namespace__()
        at, values = library.asarray([math.log2(at) for at, _ in points]), library.asarray([y for _, y in points])
        return library.interp(library.log2(x), at, values)
    right = bisect.bisect_right(points, x, key=lambda point: point[0])
    if right == 0:
        return points[0][1]
    if right == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (math.log2(x) - math.log2(x0)) / (math.log2(x1) - math.log2(x0))
