"""A file of figures that is whole after every one of them: what the benchmarks of devices write, and go on with.

A file holds `runs` (a command on a machine) and figures that each name their run. Every figure is `measured`, `skipped`
(it cannot be had here, with the reason) or `failed` (with its error); none is ever dropped. A file is of one device.

Next: `attention_results` and `h100_results`, which say what the figures are.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from nanoserve.specs.errors import ConfigError

Record = dict[str, Any]
MEASURED, SKIPPED, FAILED = "measured", "skipped", "failed"


@dataclasses.dataclass
class ResultsFile:
    """The content of a file, and how to keep it there.

    Attributes:
      path: of the JSON file; None keeps nothing.
      runs: what each run's figures depend on.
    """

    path: Path | None
    runs: list[Record] = dataclasses.field(default_factory=list)

    same: ClassVar[tuple[str, ...]] = ("device",)
    """What all runs of a file must share."""

    @property
    def run(self) -> int:
        """The number of the run that goes on."""
        return len(self.runs) - 1

    def content(self) -> Record:
        """What the file holds."""
        raise NotImplementedError

    def begin(self, run: Record) -> None:
        """Adds a run, which what is added from now on belongs to.

        Raises:
          ConfigError: for a run on another device than the file's, or one that differs in anything else of `same`.
        """
        for earlier in self.runs:
            for what in self.same:
                if earlier[what] != run[what]:
                    raise ConfigError(
                        f"--resume: {self.path} was measured with {what} {earlier[what]}, this is {run[what]}. "
                        "Give another --out"
                    )
        self.runs.append(run)
        self.write()

    def write(self) -> None:
        """Writes the file anew; a reader, and a command that is killed, always leave a whole one."""
        if self.path is None:
            return
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            partial.write_text(json.dumps(self.content(), indent=1) + "\n")
            os.replace(partial, self.path)
        except OSError as error:
            raise ConfigError(f"--out={self.path}: {error.strerror}. Name a file in a folder that exists") from error

    @classmethod
    def resumed(cls, path: Path, made: Callable[[Record], Self]) -> Self:
        """What a file holds already; nothing if there is none.

        Args:
          path: of the file. made: from its content.

        Raises:
          ConfigError: for a file that the command did not write.
        """
        if not path.exists():
            return cls(path)
        try:
            return made(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--resume: {path} is no result of this command ({error!r}). Give another --out"
            ) from error
