"""The parts of the H100 benchmark: what a part is, and where each is.

A part is a module of this package with what `Part` names. Importing it imports neither JAX nor PyTorch, so that a page
is made from its figures where neither is installed; `measure` does. A part raises what stands in its way: `ConfigError`
for a case that cannot be had here, which is `skipped`, anything else for one that `failed`. What earlier parts found is
in the context; a part may not rely on any of it, because every part can be asked for alone.

Next: `h100` (the command), `h100_results` (the file), then the parts in the order of `PARTS`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from experiments.bench.attention_timing import Clock, Effort
from experiments.bench.results_file import MEASURED, Record
from nanoserve.specs.chip_registry import detect
from nanoserve.specs.chips import ChipSpec
from nanoserve.specs.errors import ConfigError

PARTS: Mapping[str, str] = {
    "ceilings": "what the device does at best: a copy, and matrix products",
    "attention": "paged attention of one layer, beside other attention",
    "matmul": "products with quantised weights, beside XLA's and a bf16 product",
    "step": "whole steps of Llama-3.1-8B in bf16 and of Llama-3.1-70B in int4",
    "replay": "a short trace, executed and simulated",
    "peer": "our decode beside PyTorch's",
    "tokens": "greedy tokens and likelihoods of a small model, against the reference",
    "flags": "what XLA's flags change of a step",
    "profile": "where a step's time goes, operation by operation",
}
SHARED_MEMORY: Mapping[str, float] = {"peer": 0.5}
"""What XLA's pool may take of a GPU where another framework needs room beside it; other parts take nearly all."""
USUAL = ("ceilings", "attention", "matmul", "step", "replay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure. A part adds its sizes as fields.

    Attributes:
      name: what `--cases` selects, and the file's key within the part.
      extra: measured only where a pattern of `--cases` names it: there is no time for all that could be asked.
    """

    name: str
    extra: bool = False

    def sizes(self) -> Record:
        """What the case is, which its record says whatever becomes of it."""
        own = [field.name for field in dataclasses.fields(self) if field.name not in ("name", "extra")]
        return {name: getattr(self, name) for name in own}


class Shared:
    """One thing that several cases in a row need and that is slow to make, such as the weights of a model.

    Only the newest is kept: two models do not fit beside one another.
    """

    _NOTHING: ClassVar[Any] = object()

    def __init__(self):
        """Holds nothing yet."""
        self._key: Hashable = None
        self._value: Any = self._NOTHING

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The thing of this key, made if it is not the one that is kept; the other is let go before."""
        if self._value is self._NOTHING or key != self._key:
            self.release()
            self._key, self._value = key, make()
        return self._value

    def release(self) -> None:
        """Lets go of what is kept."""
        self._key, self._value = None, self._NOTHING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a part is given besides a case.

    Attributes:
      device: the JAX device that is measured.
      effort: how long to measure. clock: seconds that only grow.
      found: the records of parts, by part and case, this run's and those that the file held before.
      toy: sizes are tiny, and results are compared with plain loops.
      scratch: an empty folder, deleted at the end.
      shared: what cases share; emptied between parts.
    """

    device: Any
    effort: Effort
    clock: Clock
    found: Mapping[str, Mapping[str, Record]]
    toy: bool
    scratch: Path
    shared: Shared

    @property
    def chip(self) -> ChipSpec:
        """The figures of the device's datasheet.

        Raises:
          ConfigError: it is none of the registry.
        """
        found = detect(self.device.device_kind, self.device.platform)
        if found is None:
            raise ConfigError(
                f"{self.device.device_kind} is not in the registry of chips (nanoserve/specs/chip_registry.py): there "
                "is nothing to hold its figures against. Add it there"
            )
        return found

    def ceiling(self, name: str) -> float | None:
        """The rate of a case of `ceilings`, per second; None where it was not measured."""
        record = self.found.get("ceilings", {}).get(name, {})
        return record["rate_per_s"] if record.get("status") == MEASURED else None


class Part(Protocol):
    """The module of a part."""

    NAME: str
    """A key of `PARTS`."""

    def cases(self, toy: bool) -> Sequence[Case]:
        """What there is to measure, the most important first; of toys, a few that a CPU finishes in seconds."""
        ...

    def measure(self, case: Any, context: Context) -> Record:
        """What there is to record of a case besides its sizes; `status` is `measured` unless it says otherwise.

        Raises:
          ConfigError: the case cannot be had on this device. Exception: whatever else stands in the way.
        """
        ...

    def columns(self, record: Record) -> Mapping[str, str]:
        """The cells of a measured case's line in the table, by heading; the same headings for all of its cases."""
        ...


def load(name: str) -> Part:
    """The module of a part, imported when it is asked for: what one part needs, the others do without."""
    return cast(Part, importlib.import_module(f"{__name__}.{name}"))
