"""A run's folder, read back: its config, and the records that a run made again is compared with."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoserve.experiment import CONFIG_CLASSES
from nanoserve.specs.config import Loaded, load
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from nanoserve.replay import Replay
    from nanoserve.report.difference import Difference


def load_recorded(flag: str, path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """The config of a run, every value as it was, and its text as it was written.

    Args:
      flag: which names the folder, for errors. path: the run's folder.
      overrides: `Class.field=value`, which win over the recorded values.

    Raises:
      ConfigError: it is not the folder of a run, or a value is wrong.
    """
    texts = path / "operative.gin", path / "config.gin"
    if not all(text.is_file() for text in texts):
        raise ConfigError(f"{flag}={path}: is not the folder of a run, runs/CONFIG/ID: it has no {texts[0].name}")
    loaded = load(texts[0], CONFIG_CLASSES, "Experiment", overrides)
    return dataclasses.replace(loaded, as_written=texts[1].read_text())


class RecordedRun:
    """The records of a complete run."""

    def __init__(self, flag: str, path: Path):
        """Looks at the folder.

        Args:
          flag: which names it, for errors. path: the folder.

        Raises:
          ConfigError: it is not the folder of a complete run that can be made again.
        """
        self.path = path
        self.loaded = load_recorded(flag, path)
        if not (path / "DONE").exists():
            raise ConfigError(
                f"{flag}={path}: the run was cut short (no DONE), so there is no whole run to compare with. If it took "
                f"snapshots, finish it with --resume={path}"
            )
        if (path / "fork.json").exists():
            raise ConfigError(f"{flag}={path}: is a fork, whose config changed on the way. Name the run it came from")
        self.environment: dict[str, Any] = json.loads((path / "env.json").read_text())

    def steps(self) -> "pl.DataFrame":
        """`steps.parquet`."""
        return self._table("steps")

    def requests(self) -> "pl.DataFrame":
        """`requests.parquet`."""
        return self._table("requests")

    def summary(self) -> dict[str, Any]:
        """`summary.json`."""
        return json.loads((self.path / "summary.json").read_text())

    def tape(self) -> "np.ndarray | None":
        """What a real run was told about time; None of a run that repeats itself without."""
        import numpy as np

        file = self.path / "tape.npy"
        return np.load(file, allow_pickle=False) if file.exists() else None

    def check_same_world(self, flag: str, replay: "Replay", trace_hash: str) -> None:
        """Checks that what a run was made of is what there is now; another commit is no obstacle.

        Raises:
          ConfigError: it is not.
        """
        if replay.weights_fingerprint != self.environment["weights_hash"]:
            raise ConfigError(f"{flag}: the weights {replay.experiment.weights} are not those of the recorded run")
        if trace_hash != self.environment["trace_hash"]:
            raise ConfigError(f"{flag}: the trace ({replay.trace.source}) is not that of the recorded run any more")
        if (replay.jax_executor is None) != (not (self.path / "outputs.jsonl").exists()):
            raise ConfigError(
                f"{flag}: the recorded run was {self.environment['how']}; this one would be {replay.choice.line}. "
                "Repeat it where it was made"
            )

    def difference(self, replay: "Replay") -> "Difference | None":
        """Where a run that was made again parts from this one first: a plan, a request, an event, a token."""
        from nanoserve.report.difference import lines_difference, table_difference, tokens_difference

        records = replay.records()
        tokens = {entry["request"]: entry["output_ids"] for entry in replay.outputs()}
        found = (
            lambda: table_difference("plans", "step", self.steps(), records.steps),
            lambda: table_difference("requests", "request", self.requests(), records.requests),
            lambda: lines_difference("events", self._lines("events.jsonl"), records.event_lines()),
            lambda: tokens_difference(self._tokens(), tokens),
        )
        return next((part for compare in found if (part := compare()) is not None), None)

    def _table(self, name: str) -> "pl.DataFrame":
        import polars as pl

        return pl.read_parquet(self.path / f"{name}.parquet")

    def _lines(self, name: str) -> Iterator[str]:
        file = self.path / name
        return iter(file.read_text().splitlines(keepends=True) if file.exists() else ())

    def _tokens(self) -> dict[int, list[int]]:
        entries = (json.loads(line) for line in self._lines("outputs.jsonl"))
        return {entry["request"]: entry["output_ids"] for entry in entries}
