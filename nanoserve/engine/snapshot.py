"""A running engine as bytes and arrays, and back: the state of a run between two plans.

An engine is a graph of objects. `Outline` looks at it while it is fresh and names, by their paths, the parts that a run
never changes (configs, functions, weights, compiled steps, trace columns) and the objects whose insides it does change.
`freeze` pickles the graph: a fixed part becomes its path, a device array becomes a number and goes into a list, all
else becomes its value, and what is shared stays shared. `thaw` fills a fresh engine of the same config with it: objects
that were there keep their identity, so that whoever holds one sees the restored state.

Nothing has to be registered. State that a module adds to its objects is in the graph by itself. What it owes:
- a frozen dataclass that is there at the start and still there later is taken to be unchanged inside; put what changes
  into an ordinary object, or replace the whole value;
- what a closure captures is not part of the graph;
- an object that holds a lot and changes nothing says so with `__getstate__` (`executors.roofline_executor`), and one
  whose insides mean nothing in another process translates them there (`clock.WallClock`).

A snapshot is taken between plans only: `Engine.run` calls `observe` and `should_stop` there. Pickled bytes are code:
compare the `Header` first. Next: `executors.snapshots`, which keeps what is made here on a disk.
"""

import dataclasses
import enum
import functools
import io
import itertools
import pickle
import types
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from nanoserve.specs.errors import SnapshotError

FORMAT = 1
"""Raised whenever an older snapshot could not be read any more."""

_PLAIN = (int, float, complex, str, bytes, bytearray, type(None), array, np.ndarray, np.generic, enum.Enum)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, types.ModuleType)
_DEVICE_PACKAGES = ("jax", "jaxlib")  # meshes, shardings, devices, compiled functions: of this process, never state
_TRUSTED_PACKAGES = ("nanoserve", "collections", "numpy", "array")
_TRUSTED_BUILTINS = ("set", "frozenset", "bytearray", "complex", "range", "slice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What must be the same in the run that takes a snapshot and in the one that goes on from it.

    Attributes:
      commit: of the code, None outside a checkout. config: the run's every value, as text. trace, weights: their
        fingerprints; None where there are no weights. format: of the snapshot.
    """

    commit: str | None
    config: str
    trace: str
    weights: str | None
    format: int = FORMAT

    def difference(self, other: "Header") -> str:
        """What differs in another header, in words; empty where nothing does."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs and field.name == "config":
                return f"another config: {_first_other_line(mine, theirs)}"
            if mine != theirs:
                return f"another {field.name}: {theirs} there, {mine} here"
        return ""


@dataclasses.dataclass(frozen=True)
class Frozen:
    """An engine's state.

    Attributes:
      graph: pickled. arrays: the device arrays in it, in the order in which it names them.
      parts: paths of the fixed parts that it names; the others of a fresh engine are not needed to thaw it.
    """

    graph: bytes
    arrays: list[Any]
    parts: frozenset[str]


class Outline:
    """What a fresh engine is made of, by path: made once, before the first plan, by whoever freezes or thaws it."""

    def __init__(self, root: Any):
        """Walks the graph below `root`, an engine that has done nothing yet."""
        self.objects: dict[str, Any] = {}
        self._fixed: dict[str, Callable[[], Any]] = {}
        self._walk(root)

    def fixed(self) -> dict[str, Any]:
        """The fixed parts that still exist. They are not kept alive: one may be a pool of pages that is replaced."""
        return {path: part for path, find in self._fixed.items() if (part := find()) is not None}

    def _walk(self, root: Any) -> None:
        todo, seen = [("engine", root)], {}
        while todo:
            path, part = todo.pop()
            if isinstance(part, _PLAIN) or id(part) in seen:
                continue
            seen[id(part)] = part  # kept, because `__getstate__` may make objects whose ids would come again
            if _is_fixed(part):
                self._fixed[path] = _finder(part)
                continue
            if _is_ordinary(part) and not _is_frozen(part):
                self.objects[path] = part
            todo += [(f"{path}{step}", inner) for step, inner in _inside(part)]


def freeze(root: Any, outline: Outline, is_array: Callable[[Any], bool] = lambda part: False) -> Frozen:
    """Takes an engine's state, between two plans.

    Args:
      root: the engine that `outline` was made of. outline: of it, made when it was fresh.
      is_array: whether something is a device array, which goes into `Frozen.arrays` instead of the graph.

    Raises:
      SnapshotError: something in the graph cannot be kept.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, outline, is_array)
    try:
        pickler.dump(root)
    except (TypeError, AttributeError, pickle.PicklingError, RecursionError) as error:
        raise SnapshotError(f"the engine's state cannot be kept: {error}") from error
    return Frozen(buffer.getvalue(), pickler.arrays, frozenset(pickler.parts))


def thaw(frozen: Frozen, outline: Outline) -> None:
    """Fills a fresh engine with a state that one of the same config was frozen in.

    Args:
      frozen: the state, its arrays where the engine will want them. outline: of the fresh engine.

    Raises:
      SnapshotError: the bytes are damaged, or of an engine that is made otherwise.
    """
    try:
        _Unpickler(frozen, outline).load()
    except SnapshotError:
        raise
    except Exception as error:  # damaged bytes raise anything at all
        raise SnapshotError(f"the snapshot's state cannot be read: {type(error).__name__}: {error}") from error


class _Pickler(pickle.Pickler):
    """Writes fixed parts, objects and arrays as calls, which `_Unpickler` answers.

    A `persistent_id` would be asked about every single number; `reducer_override` is asked about objects alone.
    """

    def __init__(self, buffer: io.BytesIO, outline: Outline, is_array: Callable[[Any], bool]):
        super().__init__(buffer, protocol=5)
        self.arrays: list[Any] = []
        self.parts: set[str] = set()
        self._fixed = {id(part): path for path, part in outline.fixed().items()}
        self._objects = {id(part): path for path, part in outline.objects.items()}
        self._is_array = is_array

    def reducer_override(self, part: Any) -> Any:
        if (path := self._objects.get(id(part))) is not None:
            return _object_at, (path,), part.__getstate__()
        if (path := self._fixed.get(id(part))) is not None:
            self.parts.add(path)
            return _part_at, (path,)
        if self._is_array(part):
            self.arrays.append(part)
            return _array_at, (len(self.arrays) - 1,)
        if isinstance(part, types.MethodType):
            return _method_of, (part.__self__, part.__name__)
        if isinstance(part, types.MappingProxyType):
            return _read_only, (dict(part),)
        return NotImplemented


def _object_at(path: str) -> Any:
    raise NotImplementedError


def _part_at(path: str) -> Any:
    raise NotImplementedError


def _array_at(number: int) -> Any:
    raise NotImplementedError


def _method_of(part: Any, name: str) -> Any:
    return getattr(part, name)


def _read_only(mapping: dict) -> types.MappingProxyType:
    return types.MappingProxyType(mapping)


class _Unpickler(pickle.Unpickler):
    def __init__(self, frozen: Frozen, outline: Outline):
        super().__init__(io.BytesIO(frozen.graph))
        self._calls = {
            _object_at.__name__: functools.partial(_known, outline.objects),
            _part_at.__name__: functools.partial(_known, outline.fixed()),
            _array_at.__name__: frozen.arrays.__getitem__,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name in self._calls:
            return self._calls[name]
        trusted = name in _TRUSTED_BUILTINS if module == "builtins" else module.split(".")[0] in _TRUSTED_PACKAGES
        if not trusted:
            raise SnapshotError(f"the snapshot holds {module}.{name}, which no engine's state is made of")
        return super().find_class(module, name)


def _known(parts: Mapping[str, Any], path: str) -> Any:
    if path not in parts:
        raise SnapshotError(f"the snapshot holds {path}, which this engine does not have")
    return parts[path]


# ---- what things are ----


def _finder(part: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(part)
    except TypeError:  # slots without a place for it: small
        return lambda: part


def _is_fixed(part: Any) -> bool:
    """Functions, what belongs to JAX, and frozen dataclasses without an ordinary object inside."""
    if isinstance(part, types.BuiltinFunctionType):
        return not isinstance(part.__self__, _CONTAINERS)  # a list's `append` would go on appending to the old list
    return isinstance(part, (*_FUNCTIONS, type)) or _is_foreign(part) or (_is_frozen(part) and not _holds_objects(part))


def _holds_objects(part: Any) -> bool:
    todo, seen = [part], {}
    while todo:
        inner = todo.pop()
        if isinstance(inner, (*_PLAIN, *_FUNCTIONS, type)) or id(inner) in seen:
            continue
        seen[id(inner)] = inner
        if _is_ordinary(inner) and not _is_frozen(inner):
            return True
        todo += [deeper for _, deeper in _inside(inner)]
    return False


def _is_frozen(part: Any) -> bool:
    how = getattr(type(part), "__dataclass_params__", None)
    return how is not None and how.frozen


def _is_ordinary(part: Any) -> bool:
    """An object that is its attributes: nothing built in below it, no way of its own to be copied."""
    kind = type(part)
    own_way = kind.__reduce__ is not object.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__
    return not (own_way or _is_foreign(part) or isinstance(part, (*_PLAIN, *_CONTAINERS, *_FUNCTIONS, type)))


def _is_foreign(part: Any) -> bool:
    return type(part).__module__.split(".")[0] in _DEVICE_PACKAGES


def _inside(part: Any) -> Iterator[tuple[str, Any]]:
    """What an object or a container holds, with the step of the path that leads there."""
    if isinstance(part, dict):
        return ((f"[{key!r}]", value) for key, value in part.items())
    if isinstance(part, list | tuple | deque):
        return ((f"[{place}]", value) for place, value in enumerate(part) if not isinstance(value, int))
    if not _is_ordinary(part):
        return iter(())
    state = part.__getstate__()
    layers = state if isinstance(state, tuple) else (state,)  # a dict of attributes, a dict of slots, both, or neither
    return ((f".{name}", value) for layer in layers if isinstance(layer, dict) for name, value in layer.items())


def _first_other_line(mine: str, theirs: str) -> str:
    lines = itertools.zip_longest(theirs.splitlines(), mine.splitlines(), fillvalue="nothing")
    return next((f"{there} there, {here} here" for there, here in lines if there != here), "in its line ends")
