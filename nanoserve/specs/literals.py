"""Whether a literal from a config has the type that a field is annotated with.

Beartype is not used for this: it looks at one random item of a list and the first of a dict, which is right for a hot
path and wrong for a config, and takes True for an int.

Invariant: `write(value)` is gin text, and parsing it gives the value back.
"""

import collections.abc
import math
import types
import typing
from typing import Any

from nanoserve.specs.errors import nearest

_MAPPINGS = (dict, collections.abc.Mapping)
_LISTS = {list: list, collections.abc.Sequence: (list, tuple)}


def fit(value: Any, hint: Any) -> Any:
    """Returns `value` as the annotation describes it: unchanged, but an int becomes a float where a float is wanted.

    Args:
      value: what gin parsed: None, bool, int, float, str, list, tuple, dict.
      hint: a resolved annotation made of those, `Mapping`, `Sequence`, `Literal`, `Any` and unions.

    Raises:
      TypeError: it does not fit; bool is not an int and list is not a tuple.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, args)
    if origin is typing.Literal and any(type(value) is type(a) and value == a for a in args):
        return value
    if origin in _MAPPINGS and isinstance(value, dict):
        return {fit(k, args[0]): fit(v, args[1]) for k, v in value.items()}
    if origin in _LISTS and isinstance(value, _LISTS[origin]):
        return type(value)(fit(v, args[0]) for v in value)
    if origin is tuple and isinstance(value, tuple):
        return _fit_tuple(value, args)
    if hint is float and type(value) is int:
        return _to_float(value)
    if type(value) is (types.NoneType if hint is None else hint):
        return value
    raise TypeError(f"{value!r} is not {describe(hint)}")


def describe(hint: Any) -> str:
    """An annotation in words: `int or None`, `'auto' or 'jax'`, `True or False`."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(a) for a in args)
    if hint in (None, types.NoneType):
        return "None"
    if hint is bool:
        return "True or False"
    return hint.__name__ if isinstance(hint, type) and not args else str(hint).replace("collections.abc.", "")


def advice(value: Any, hint: Any) -> str:
    """What to write instead of a value that does not fit; empty where `describe` says it all."""
    if not isinstance(value, str):
        return " Put it in quotes" if fits(str(value), hint) else ""
    words = [a for a in _alternatives(hint) if isinstance(a, str)]
    if words:
        return nearest(value, words)
    literals = {"true": True, "false": False, "none": None}
    for meant in (literals.get(value.lower(), value), _number(value)):
        if meant != value and fits(meant, hint):
            return f" Write {meant!r} without quotes"
    return ""


def fits(value: Any, hint: Any) -> bool:
    """Whether `fit` accepts the value."""
    try:
        fit(value, hint)
    except TypeError:
        return False
    return True


def write(value: Any) -> str:
    """A value as gin text.

    Raises:
      TypeError: gin has no literal for it (NaN, or an object).
    """
    if isinstance(value, collections.abc.Mapping):
        return "{" + ", ".join(f"{write(k)}: {write(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(write(v) for v in value) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(f"{write(v)}, " for v in value).rstrip(" ") + ")"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # `inf` is a name to the parser
    if type(value) in (types.NoneType, bool, int, str) or (type(value) is float and not math.isnan(value)):
        return repr(value)
    raise TypeError(f"gin has no literal for {value!r}")


def _fit_union(value: Any, args: tuple[Any, ...]) -> Any:
    exact = [a for a in args if type(value) is a]  # so that 5 stays an int where int | float is wanted
    for hint in (*exact, *args):
        if fits(value, hint):
            return fit(value, hint)
    raise TypeError(f"{value!r} is none of {', '.join(describe(a) for a in args)}")


def _fit_tuple(value: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    hints = (args[0],) * len(value) if args[1:] == (...,) else args
    if len(hints) != len(value):
        raise TypeError(f"{value!r} has {len(value)} items, wanted {len(hints)}")
    return tuple(fit(v, hint) for v, hint in zip(value, hints, strict=True))


def _to_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise TypeError(f"{value} is too large for a float") from None


def _alternatives(hint: Any) -> list[Any]:
    """The values a `Literal` allows, also inside a union."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return list(args)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [value for a in args for value in _alternatives(a)]
    return []


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
