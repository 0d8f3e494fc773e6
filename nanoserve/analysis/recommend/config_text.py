"""A recommendation as a config that runs: every field that differs from a class's default, and why where it was chosen.

The text needs no other file but the trace that it names; `specs.config.load` reads it back to the same experiment.
"""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator, Mapping

from nanoserve.experiment import CONFIG_CLASSES, Experiment
from nanoserve.specs.literals import write

_WIDTH = 118


def config_text(experiment: Experiment, header: str, reasons: Mapping[str, str]) -> str:
    """Writes a config.

    Args:
      experiment: what it is to load to.
      header: what it is and where it came from; becomes comments.
      reasons: field, as `Engine.max_seqs`, -> the finding that it follows from; such a field is written even where it
        has its default.
    """
    parts = [_comment(header)]
    for owner, value in _owners(experiment):
        lines = [line for field in dataclasses.fields(value) for line in _field(owner, field, value, reasons)]
        if lines:
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _owners(experiment: Experiment) -> Iterator[tuple[str, typing.Any]]:
    """Class names of a config, each with its value; the experiment itself first."""
    names = {cls: name for name, cls in CONFIG_CLASSES.items()}
    yield names[Experiment], experiment
    for field in dataclasses.fields(experiment):
        value = getattr(experiment, field.name)
        if type(value) in names:
            yield names[type(value)], value


def _field(owner: str, field: dataclasses.Field, value: typing.Any, reasons: Mapping[str, str]) -> Iterator[str]:
    own, key = getattr(value, field.name), f"{owner}.{field.name}"
    if type(own) in CONFIG_CLASSES.values():
        return
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if key in reasons:
        yield _comment(reasons[key])
    if key in reasons or own != default:
        yield f"{key} = {write(own)}"


def _comment(text: str) -> str:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, _WIDTH)]
    return "\n".join(f"# {line}" for line in lines)
