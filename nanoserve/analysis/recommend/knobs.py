"""What a recommendation may turn: a knob, its settings, and the findings that speak about it; all of it data.

A setting is a change to an experiment, so that one that touches several fields at once (pages of another size are
another number of pages) stays one setting. Next: `knob_list`, the knobs that there are; `search`, which turns them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanoserve.experiment import Experiment
from nanoserve.trace.types import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A value of a knob: its label, and the fields that it sets, by their name in a config."""

    label: str
    fields: Mapping[str, Any]

    def applied(self, experiment: Experiment) -> Experiment:
        """The experiment with these fields."""
        parts: dict[str, dict[str, Any]] = {}
        for key, value in self.fields.items():
            owner, field = key.split(".")
            parts.setdefault(_PARTS[owner], {})[field] = value
        changed = {part: dataclasses.replace(getattr(experiment, part), **fields) for part, fields in parts.items()}
        return dataclasses.replace(experiment, **changed)

    def holds(self, experiment: Experiment) -> bool:
        """Whether the experiment has these values already."""
        return all(_same(value_of(experiment, key), value) for key, value in self.fields.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knob:
    """What can be turned.

    Attributes:
      name: short and stable, as in keys of findings. subject: in words.
      settings: of an experiment, the values to try.
      evidence: beginnings of the keys of findings that speak about it.
      axis: what the values are, for the axis of a plot.
      label: what a value of the first field is called.
      means: whether it means something for the requests of a trace.
      safer: what its safer value is called, which is taken where requests are served as well with it.
    """

    name: str
    subject: str
    settings: Callable[[Experiment], list[Setting]]
    evidence: tuple[str, ...]
    axis: str
    label: Callable[[Any], str] = str
    means: Callable[[Trace], bool] = lambda trace: True
    safer: str = ""

    def options(self, experiment: Experiment) -> list[Setting]:
        """The values to try, the one in force among them; empty where there is nothing to turn."""
        settings = self.settings(experiment)
        if not settings or any(setting.holds(experiment) for setting in settings):
            return settings
        settings.append(self._in_force(settings, experiment))
        ordered = all(isinstance(_first_value(setting), int | float) for setting in settings)
        return sorted(settings, key=_first_value) if ordered else settings

    def label_of(self, settings: Sequence[Setting], experiment: Experiment) -> str:
        """What an experiment's value is called; `settings` are some of this knob's."""
        held = next((setting for setting in settings if setting.holds(experiment)), None)
        return (held or self._in_force(settings, experiment)).label

    def _in_force(self, settings: Sequence[Setting], experiment: Experiment) -> Setting:
        fields = {key: value_of(experiment, key) for key in settings[0].fields}
        return Setting(label=self.label(next(iter(fields.values()))), fields=fields)


_PARTS = {"Engine": "engine", "Cluster": "cluster"}


def value_of(experiment: Experiment, key: str) -> Any:
    """The value of a field by its name in a config: `Engine.max_seqs`."""
    owner, field = key.split(".")
    return getattr(getattr(experiment, _PARTS[owner]), field)


def _first_value(setting: Setting) -> Any:
    return next(iter(setting.fields.values()))


def _same(one: Any, other: Any) -> bool:
    """Whether two values mean the same; axes of a mesh that divide nothing do not count."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return {axis: size for axis, size in one.items() if size > 1} == {
            k: size for k, size in other.items() if size > 1
        }
    return one == other
