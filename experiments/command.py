"""What the commands share: flags of their own, `--help`, one line for what the user can mend, exit codes.

A command is a function of its parsed flags that returns an exit code; `run` does the rest:

    def main(arguments):
        return command.run(arguments, __doc__, _flags, _command)

Every call parses into a `FlagValues` of its own: absl's global one would be shared by all commands of a process, and a
test runs many. `experiments/run.py`, which also has signals and a run's folder to mind, uses `parse` alone.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from nanoserve.specs.errors import ConfigError, NanoserveError, nearest

EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130


def run(
    arguments: Sequence[str],
    manual: str | None,
    define: Callable[[flags.FlagValues], None],
    body: Callable[[flags.FlagValues], int],
    rest: str = "",
) -> int:
    """Runs a command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.
      manual: what `--help` prints above the flags.
      define: defines the command's flags.
      body: the command itself; returns its exit code.
      rest: the repeatable flag that arguments without a name are values of; empty: there may be none.

    Returns:
      The exit code: the body's, 2 after an error that the user can mend, 130 when interrupted.
    """
    try:
        asked = parse(arguments, define, rest)
        if asked.help:
            print(manual)
            print(asked.get_help())
            return 0
        return body(asked)
    except NanoserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def parse(arguments: Sequence[str], define: Callable[[flags.FlagValues], None], rest: str = "") -> flags.FlagValues:
    """Returns the flags of a command, `--help` among them; `rest` is as for `run`.

    Raises:
      ConfigError: an unknown flag, a value it does not take, or an argument that is no flag.
    """
    own = flags.FlagValues()
    define(own)
    flags.DEFINE_bool("help", False, "show this help", flag_values=own, short_name="h")
    own.set_gnu_getopt(bool(rest))  # so that flags may stand behind arguments, too
    try:
        _, *unnamed = own(arguments)
    except flags.Error as error:
        raise ConfigError(f"{error}. See --help") from error
    if rest:
        own[rest].value = [*(own[rest].value or ()), *unnamed]
    elif unnamed:
        raise ConfigError(f"unexpected argument '{unnamed[0]}'. Flags are written --name=value; see --help")
    return own


def page(arguments: Sequence[str], manual: str | None, path: Path, made: Callable[[], str]) -> int:
    """Runs a command that writes a page from committed figures, or with `--check` says whether it is what they give.

    Args:
      arguments, manual: as for `run`. path: of the page. made: makes its text.
    """

    def define(own: flags.FlagValues) -> None:
        flags.DEFINE_bool("check", False, "write nothing; exit code 1 if the page is out of date", flag_values=own)

    def body(asked: flags.FlagValues) -> int:
        text = made()
        if not asked.check:
            write_text("the page", path, text)
            return 0
        same = path.is_file() and path.read_text() == text
        print(f"{path.name} is {'what' if same else 'not what'} its figures give")
        return 0 if same else EXIT_FAILED

    return run(arguments, manual, define, body)


def known(flag: str, what: str, names: Iterable[str], valid: Iterable[str]) -> None:
    """Checks the names given to a flag.

    Args:
      flag: its name, with dashes. what: what they are names of.
      names, valid: those given, and all there are.

    Raises:
      ConfigError: a name that is not valid, with the nearest that is.
    """
    valid = list(valid)
    for name in names:
        if name not in valid:
            raise ConfigError(f"{flag}: there is no {what} '{name}'.{nearest(name, valid)}")


def write_json(flag: str, path: Path, contents: Mapping[str, Any]) -> None:
    """Writes a file of figures.

    Raises:
      ConfigError: it cannot be written.
    """
    write_text(flag, path, json.dumps(contents, indent=1) + "\n")


def write_text(flag: str, path: Path, text: str) -> None:
    """Writes a file of text; raises as `write_json`."""
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{flag}={path}: {error.strerror}. Name a file in a folder that exists") from error
