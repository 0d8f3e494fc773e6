"""Walks two graphs of objects side by side and says where they differ: what a snapshot did not restore."""

import functools
from array import array
from collections import deque
from typing import Any

import numpy as np

VALUES = (int, float, str, bytes, bytearray, type(None), array)


def differences(one: Any, other: Any, path: str = "engine") -> list[str]:
    """Every path at which `other` is not as `one`: other values, other members, or shared in one of the two only."""
    found, twins, todo = [], {}, [(path, one, other)]
    while todo:
        path, a, b = todo.pop()
        if type(a) is not type(b):
            found.append(f"{path}: {type(a).__name__} became {type(b).__name__}")
        elif _is_value(a):
            found += [] if _equal(a, b) else [f"{path}: {a!r} became {b!r}"[:200]]
        elif id(a) in twins:
            found += [] if twins[id(a)] is b else [f"{path}: shared in one of the two only"]
        else:
            twins[id(a)] = b
            mine, theirs = _inside(a), _inside(b)
            if list(mine) != list(theirs):
                found.append(f"{path}: holds {list(theirs)[:20]} instead of {list(mine)[:20]}")
            else:
                todo += [(path + step, mine[step], theirs[step]) for step in mine]
    return sorted(found)


def _is_value(part: Any) -> bool:
    return isinstance(part, VALUES) or hasattr(part, "dtype") or _is_code(part)


def _is_code(part: Any) -> bool:
    return isinstance(part, type | functools.partial) or hasattr(part, "__code__")


def _equal(a: Any, b: Any) -> bool:
    if str(getattr(a, "dtype", "")).startswith("key"):
        return repr(a) == repr(b)  # of JAX, which shows what it holds and is no array of numbers
    if hasattr(a, "dtype"):
        return a.shape == b.shape and np.array_equal(np.asarray(a), np.asarray(b))
    if isinstance(a, array):
        return a.tobytes() == b.tobytes()  # NaN is the same missing time
    return _is_code(a) or a == b


def _inside(part: Any) -> dict[str, Any]:
    """What a container or an object holds, by the step of a path that leads there; in order, but sets have none."""
    if isinstance(part, dict):
        return {f"[{key!r}]": value for key, value in part.items()}
    if isinstance(part, list | tuple | deque):
        return {f"[{place}]": value for place, value in enumerate(part)}
    if isinstance(part, set | frozenset):
        return {f"{{{member!r}}}": None for member in sorted(part)}
    slots = [name for kind in type(part).__mro__ for name in getattr(kind, "__slots__", ())]
    named = getattr(part, "__dict__", {}) | {name: getattr(part, name) for name in slots if hasattr(part, name)}
    return {f".{name}": named[name] for name in sorted(named)}
