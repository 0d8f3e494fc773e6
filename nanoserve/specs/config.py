"""The strict loader: gin text to frozen dataclasses, with an error for everything that gin lets pass.

A config is lines of `Class.field = value`. The classes come from the caller's registry; a field whose type is itself a
registered class is built from that class's own lines, so one class has one value and nothing needs an `@reference`.

Invariants: every line of a config is used or refused; every value has its field's type; `Loaded.operative` says
the value of every field and loads to the same object. No JAX and no polars here, so a slip is reported at once.
Next: `gin_files` (text to bindings), `literals` (values and types), `nanoserve.experiment` (the classes).
"""

import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.specs.gin_files import Binding, Macro, Reference, read, read_flag, text_of
from nanoserve.specs.literals import advice, describe, fit, write


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A config that holds.

    Attributes:
      value: the root dataclass.
      as_written: the text that was read, includes not expanded.
      operative: every field of every class, sorted, as a config that needs no other file.
    """

    value: Any
    as_written: str
    operative: str


def load(source: Path | str, registry: Mapping[str, type], root: str, overrides: Sequence[str] = ()) -> Loaded:
    """Reads a config and builds the class named `root`.

    Args:
      source: the path of a gin file; a `str` is config text itself.
      registry: class name in configs -> frozen, keyword-only dataclass.
      root: the name of the class to build.
      overrides: `Class.field=value`, applied last; a value that is no literal is taken as a string.

    Raises:
      ConfigError: whatever is wrong, with `file:line` or the flag, the nearest valid name and what to do.
    """
    text, path = (text_of(source), source) if isinstance(source, Path) else (source, None)
    bindings = [*read(text, path), *map(read_flag, overrides)]
    used = {name: registry[name] for name in _reachable(registry, root)}
    for binding in bindings:
        if "." in binding.key:
            _check_field(binding, registry, used, root)
    last = {binding.key: binding for binding in bindings}
    _check_macros(bindings, last, used)
    value = _Builder(used, last).build(root)
    return Loaded(value=value, as_written=text, operative="".join(sorted(_operative(root, value, used))))


def resolve(name_or_path: str, folder: Path | str = "configs") -> Path:
    """The file that a config's name or path means: `NAME` is `folder/NAME.gin`.

    Raises:
      ConfigError: there is no such file; the message has the nearest name.
    """
    for path in (Path(folder) / f"{name_or_path}.gin", Path(name_or_path)):
        if os.path.isfile(path):  # `Path.is_file` raises for a name that is too long
            return path
    names = [path.stem for path in Path(folder).glob("*.gin")]
    wanted = Path(name_or_path).name.removesuffix(".gin")
    raise ConfigError(f"--config={name_or_path}: no such file, nor a config in {folder}/.{nearest(wanted, names)}")


def _reachable(registry: Mapping[str, type], name: str) -> Iterator[str]:
    """The class `name` and every registered class that its fields are made of."""
    yield name
    for inner in _parts(registry, name).values():
        yield from _reachable(registry, inner)


def _parts(registry: Mapping[str, type], name: str) -> Mapping[str, str]:
    """Field -> class name, for the fields of a class that are built from a class's own lines."""
    names = {cls: each for each, cls in registry.items()}
    return {field: names[hint] for field, hint in _hints(registry[name]).items() if hint in names}


def _hints(cls: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _check_field(binding: Binding, registry: Mapping[str, type], used: Mapping[str, type], root: str) -> None:
    name, field = binding.key.rsplit(".", 1)
    if name not in registry:
        raise ConfigError(f"{binding.where}: there is no class '{name}'.{nearest(name, used)}")
    if name not in used:
        raise ConfigError(f"{binding.where}: {binding.key} is never used: {root} has no {name}. Remove the line")
    hints = _hints(used[name])
    if field not in hints:
        owners = [f"{other}.{field}" for other in used if field in _hints(used[other])]
        hint = f" Did you mean '{owners[0]}'?" if owners else nearest(field, hints)
        raise ConfigError(f"{binding.where}: {name} has no field '{field}'.{hint}")
    part = _parts(used, name).get(field)
    if part:
        example = next(iter(_hints(used[part])))
        raise ConfigError(f"{binding.where}: {binding.key} is made of fields. Set those, as in {part}.{example} = ...")


def _check_macros(bindings: Sequence[Binding], last: Mapping[str, Binding], used: Mapping[str, type]) -> None:
    macros = {key for key in last if "." not in key}
    uses = [(use, binding) for binding in bindings for use in binding.uses]
    for use, binding in uses:
        if isinstance(use, Reference):
            raise ConfigError(f"{binding.where}: '@{use.name}': references are not used. Set {use.name}.field = value")
        if use.name not in macros:
            raise ConfigError(
                f"{binding.where}: %{use.name} is not defined.{nearest(use.name, macros)} Define it: {use.name} = value"
            )
    for name in sorted(macros - {use.name for use, _ in uses}):
        fields = [f"{cls}.{field}" for cls in used for field in _hints(used[cls]) if name in (cls, field)]
        advised = f" Did you mean '{fields[0]}'?" if fields else f" Use it as %{name}, or remove the line"
        raise ConfigError(f"{last[name].where}: {name} is defined and never used.{advised}")


class _Builder:
    """Builds classes from their bindings."""

    def __init__(self, classes: Mapping[str, type], bindings: Mapping[str, Binding]):
        self._classes, self._bindings = classes, bindings

    def build(self, name: str, default: Any = dataclasses.MISSING) -> Any:
        """The class `name`; fields that no line sets are those of `default`, else the class's own defaults."""
        cls, parts = self._classes[name], _parts(self._classes, name)
        values = {}
        for field in dataclasses.fields(cls):
            fallback = _default(field) if default is dataclasses.MISSING else getattr(default, field.name)
            if field.name in parts:
                values[field.name] = self.build(parts[field.name], fallback)
            elif field.init:
                values[field.name] = self._value(name, field.name, fallback)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{self._culprit(name, str(error))}{error}") from error

    def _value(self, name: str, field: str, fallback: Any) -> Any:
        key = f"{name}.{field}"
        hint = _hints(self._classes[name])[field]
        if key not in self._bindings:
            if fallback is dataclasses.MISSING:
                raise ConfigError(f"{key} is not set and has no default. Add a line: {key} = ... ({describe(hint)})")
            return fallback
        binding = self._bindings[key]
        value = self._expand(binding.value, binding.where, ())
        try:
            return fit(value, hint)
        except TypeError:
            raise ConfigError(
                f"{binding.where}: {key} = {value!r}: wanted {describe(hint)}.{advice(value, hint)}"
            ) from None

    def _expand(self, value: Any, where: str, open_macros: tuple[str, ...]) -> Any:
        """A value with its macros replaced."""
        if isinstance(value, Macro):
            if value.name in open_macros:
                raise ConfigError(f"{where}: %{value.name} is defined by itself. Give it a value")
            macro = self._bindings[value.name]
            return self._expand(macro.value, macro.where, (*open_macros, value.name))
        if isinstance(value, dict):
            return {k: self._expand(v, where, open_macros) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._expand(v, where, open_macros) for v in value)
        return value

    def _culprit(self, name: str, message: str) -> str:
        """Where the field that a class complains about was set, as a prefix for its message."""
        places = {key: binding.where for key, binding in self._bindings.items() if key.startswith(f"{name}.")}
        found = [(message.index(key), where) for key, where in places.items() if key in message]
        return f"{min(found)[1]}: " if found else ""


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _operative(name: str, value: Any, classes: Mapping[str, type]) -> Iterator[str]:
    parts = _parts(classes, name)
    for field in _hints(classes[name]):
        inner = getattr(value, field)
        if field in parts:
            yield from _operative(parts[field], inner, classes)
        else:
            yield f"{name}.{field} = {write(inner)}\n"
