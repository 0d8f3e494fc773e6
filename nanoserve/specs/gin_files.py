"""Gin text to a flat list of bindings, each with the place it was written.

Only gin's own parser is used, none of its global registry, so reading leaves nothing behind. What the names mean, and
whether a value has the right type, is the business of `config`, which is the one to read next.

Invariants: bindings come in the order in which they take effect (a later one replaces an earlier one), so a file's
includes stand before its own lines; within one file no key is bound twice.
"""

import dataclasses
import io
import os
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from nanoserve.specs.errors import ConfigError, nearest


class Macro(NamedTuple):
    """A use of `%NAME` inside a value."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


class Reference(NamedTuple):
    """A use of `@Name` inside a value; never valid, kept so that the message can say where."""

    name: str


@dataclasses.dataclass(frozen=True)
class Binding:
    """One `key = value`.

    Attributes:
      key: `Class.field`; a key without a dot defines a macro.
      value: the literal, in which `Macro` and `Reference` stand for names.
      where: `file:line`, or the `--set` flag it came from.
      uses: macros and references in the value.
    """

    key: str
    value: Any
    where: str
    uses: tuple[Macro | Reference, ...] = ()


def text_of(path: Path) -> str:
    """The text of a config file.

    Raises:
      ConfigError: it cannot be read, or is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a config: {error}. Give the path of a .gin text file") from error


def read(text: str, path: Path | None = None) -> list[Binding]:
    """Bindings of a config and, before them, of the files that it includes.

    Args:
      text: gin statements.
      path: where they were read; `include 'other.gin'` is relative to its folder (None: to the working directory).

    Raises:
      ConfigError: an include cannot be read or they go in a circle, the syntax is wrong, or a file binds a key twice.
    """
    if path is None:
        return list(_bindings_of(text, "<text>", Path(), ()))
    return list(_bindings_of(text, str(path), path.parent, (path,)))


def read_flag(flag: str) -> Binding:
    """Reads the `Class.field=value` of a `--set` flag; a value that is no gin literal is taken as a string.

    Raises:
      ConfigError: there is no `Class.field` before a `=`, or the value is a bracket or quote that never closes.
    """
    key, equals, text = (part.strip() for part in flag.partition("="))
    where = f"--set {flag}"
    if not equals or not re.fullmatch(r"\w+\.\w+", key):
        raise ConfigError(f"{where}: wanted Class.field=value, as in --set Engine.max_seqs=64")
    try:
        (binding,) = _bindings_of(f"{key} = {text}\n", where, Path(), ())
    except (ConfigError, ValueError):
        if not text or text[0] in "[{(\"'%@":
            raise ConfigError(f"{where}: '{text}' is not a value. Write a number, a word, or a gin literal") from None
        return Binding(key, text, where)
    return dataclasses.replace(binding, where=where)


class _Names(config_parser.ParserDelegate):
    """Takes down the names in a value instead of looking them up."""

    def __init__(self):
        self.uses: list[Macro | Reference] = []

    def macro(self, macro_name: str) -> Any:
        self.uses.append(Macro(macro_name))
        return Macro(macro_name)

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        self.uses.append(Reference(scoped_configurable_name))
        return Reference(scoped_configurable_name)


def _bindings_of(text: str, name: str, folder: Path, parents: tuple[Path, ...]) -> Iterator[Binding]:
    own: dict[str, Binding] = {}
    for statement, uses in _statements(text, name):
        where = f"{name}:{statement.location.line_num}"
        if isinstance(statement, config_parser.IncludeStatement):
            if own:
                raise ConfigError(
                    f"{where}: include '{statement.filename}' after a binding. Move it to the top: lines below an "
                    "include override it"
                )
            yield from _include(statement.filename, where, folder, parents)
        elif isinstance(statement, config_parser.ImportStatement):
            raise ConfigError(f"{where}: '{statement.format()}': a config holds values, not code. Remove the import")
        elif isinstance(statement, config_parser.BindingStatement):
            binding = Binding(_key(statement, where), statement.value, where, uses)
            if binding.key in own:
                raise ConfigError(
                    f"{where}: {binding.key} is already set at {own[binding.key].where}. Keep one of the two lines"
                )
            own[binding.key] = binding
            yield binding


def _statements(text: str, name: str) -> Iterator[tuple[Any, tuple[Macro | Reference, ...]]]:
    names = _Names()
    try:
        lines = io.StringIO(text, newline=None).read()  # Python's tokenizer stumbles over a lone carriage return
        parser = config_parser.ConfigParser(lines, names)
        while statement := _next(parser):
            yield statement, tuple(names.uses)
            names.uses.clear()
    except SyntaxError as error:
        raise ConfigError(f"{name}:{error.lineno}: {_plain(error.msg)}") from error
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        advice = ". Close the bracket or the quote" if "EOF" in message or "unterminated" in message else ""
        raise ConfigError(f"{name}:{line}: syntax error: {message}{advice}") from error


def _next(parser: config_parser.ConfigParser) -> Any:
    try:
        return parser.parse_statement()
    except TypeError as error:  # gin builds dicts without looking at their keys
        token: Any = parser.current_token
        place = (None, token.start[0], None, None)
        raise SyntaxError(f"{error}: the keys of a dict are text or numbers", place) from error


def _plain(message: str) -> str:
    """Gin's message without the address of a parse tree, and with advice for the commonest slip: missing quotes."""
    last = message.strip().splitlines()[-1].strip().rstrip(".")
    token = last.removeprefix("Failed to parse token ")
    return f"{token} is not a value. Put text in quotes" if token != last else f"syntax error: {last}"


def _key(statement: config_parser.BindingStatement, where: str) -> str:
    if statement.scope:
        raise ConfigError(
            f"{where}: '{statement.scope}/{statement.selector}': scopes are not used. Write Class.field = value"
        )
    return f"{statement.selector}.{statement.arg_name}" if statement.arg_name else statement.selector


def _include(wanted: str, where: str, folder: Path, parents: tuple[Path, ...]) -> list[Binding]:
    path = Path(os.path.normpath(folder / wanted))
    if not path.is_file():
        # Text read from nowhere has no folder, and the working directory may be large.
        present = [str(p.relative_to(folder)) for p in folder.rglob("*.gin")] if folder.name else []
        raise ConfigError(f"{where}: include '{wanted}': there is no file {path}.{nearest(wanted, present)}")
    if path.resolve() in [parent.resolve() for parent in parents]:
        circle = " -> ".join(str(p) for p in (*parents, path))
        raise ConfigError(f"{where}: includes go in a circle: {circle}. Remove one of them")
    return list(_bindings_of(text_of(path), str(path), path.parent, (*parents, path)))
