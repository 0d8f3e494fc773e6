"""What `run.py --profile_steps=20:25` adds to a real run: the device's own record of some plans, and a page about it.

Plans are counted from 0, the last number is not among them; compilation is over before the first. The record is taken
by `nanoserve.executors.profiling`, divided among operations and laid beside their prices by
`nanoserve.roofline.profiled`. Files, in `profile/` of the run's folder: `profile.json`, a picture for every kind of
plan, `trace.xplane.pb` and `trace.json.gz`, which ui.perfetto.dev opens.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.run_compared import Alone, plan_counts
from nanoserve.report.run_folder import RunFolder
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from nanoserve.executors.profiling import ProfiledRun
    from nanoserve.replay import Replay
    from nanoserve.roofline.profiled import KindProfile, Profile, Ran

_NAMED_ENOUGH = 0.8  # of the busy time; below, the page says what may help
GRAPHS = (
    "While a profiler is on, XLA runs recorded graphs (command buffers) kernel by kernel: the kernels take what they "
    "take in the run, but they wait longer for one another. XLA_FLAGS=--xla_enable_command_buffers_during_profiling "
    "keeps the graphs; kernels in them may then have no names."
)


class Profiled(Alone):
    """A real run of which some plans are profiled."""

    def __init__(self, plans: range):
        """Takes the numbers of the plans to profile, as `plans_of` reads them."""
        self._plans = plans
        self._run: ProfiledRun | None = None
        self._scratch = tempfile.TemporaryDirectory()

    def check(self, replay: "Replay") -> None:
        """Refuses a run that is not executed, by one engine, from its start to its end.

        Raises:
          ConfigError: it would be simulated, has replicas, or keeps snapshots; says what to do.
        """
        if replay.jax_executor is None:
            raise ConfigError(
                f"--profile_steps records what a device does, and this run is {replay.choice.line}. Choose a config "
                "whose chips are here, such as --config=smollm2_cpu"
            )
        if len(replay.members) > 1:
            raise ConfigError(
                "--profile_steps profiles one engine, and this run has several: leave 'data' out of Cluster.mesh, and "
                "Disaggregation off"
            )
        if replay.experiment.snapshots.interval_s is not None:
            raise ConfigError(
                "--profile_steps: a run that is profiled keeps no snapshots. Leave Snapshots.interval_s out"
            )

    def before(self, replay: "Replay") -> None:
        """Sees to it that the plans of the range are recorded."""
        from nanoserve.executors.profiling import ProfiledRun

        engine = replay.engine

        def put_back(executor) -> None:
            engine.executor = executor

        folder = Path(self._scratch.name)
        engine.executor = self._run = ProfiledRun(engine.executor, self._plans, folder, lambda: engine.clock, put_back)

    def after(self, replay: "Replay", folder: RunFolder) -> None:
        """Reads the record, prints the tables, and writes the files; says so where the run had too few plans.

        Raises:
          CapacityError: the folder cannot be written.
        """
        from nanoserve.report.terminal import print_profile

        if self._run is None:
            raise ValueError("nothing was recorded: `before` comes first")
        self._run.finish()
        if not self._run.seen:
            plans = replay.engine.log.plan_count()
            print(f"--profile_steps={_text(self._plans)}: nothing is profiled, the run had {plans:,} plans")
            return
        self.profile = made(replay, self._plans, Path(self._scratch.name))
        print_profile(self.profile)
        folder.write_profile(_files(self.profile, Path(self._scratch.name)))
        self._scratch.cleanup()


def plans_of(text: str) -> range:
    """The plans that `--profile_steps` names.

    Raises:
      ConfigError: it is not two numbers, or names no plan.
    """
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal()):
        raise ConfigError(
            f"--profile_steps={text} is not FIRST:END, two whole numbers of plans counted from 0. Give 20:25 for the "
            "plans 20, 21, 22, 23 and 24"
        )
    plans = range(int(first), int(end))
    if not plans:
        raise ConfigError(
            f"--profile_steps={text} names no plan: END is not among them. Give {first}:{int(first) + 5} for five"
        )
    return plans


def made(replay: "Replay", plans: range, folder: Path) -> "Profile":
    """The profile of a run's plans.

    Args:
      replay: that has run. plans: those that were asked for; fewer may have been recorded.
      folder: what the profiler wrote.
    """
    import jax

    from nanoserve.executors.profile_reading import NOTHING, Priced, kinds_of, read
    from nanoserve.roofline.profiled import Profile

    recorded, device = read(folder), jax.devices()[0]
    ran, pool = _ran(replay.records().steps), replay.members[0].pool
    priced = Priced(model=pool.model, cluster=pool.cluster, precision=pool.precision, calibration=pool.calibration)
    kinds = kinds_of(recorded, ran, priced, device)
    numbers = [window.plan for window in recorded.windows]
    remarks = _remarks(kinds, ran, plans, numbers, device.platform)
    return Profile(
        first=numbers[0],
        end=numbers[-1] + 1,
        device=device.device_kind,
        calibrated_by=pool.calibration.name,
        kinds=kinds,
        remarks=tuple(remarks) if recorded.events else (f"{NOTHING[0].upper()}{NOTHING[1:]}.",),
    )


def _ran(steps: "pl.DataFrame") -> "dict[int, Ran]":
    from nanoserve.roofline.profiled import Ran

    columns = zip(steps["kind"], plan_counts(steps), steps["duration_s"], strict=True)
    return {number: Ran(*row) for number, row in enumerate(columns)}


def _remarks(
    kinds: "Sequence[KindProfile]", ran: "Mapping[int, Ran]", asked: range, numbers: Sequence[int], platform: str
):
    """What a reader has to know."""
    from nanoserve.report import units

    if len(numbers) < len(asked):
        yield f"The run had {len(ran):,} plans; {len(asked)} were to be profiled, {_text(asked)}."
    for kind in kinds:
        others = [each for number, each in ran.items() if each.kind == kind.kind and number not in numbers]
        if others:
            typical_s = statistics.median(each.duration_s / each.counts.steps for each in others)
            yield (
                f"Profiled {kind.kind} steps took {units.time(kind.duration_s)}; those of the {len(others):,} other "
                f"plans of this kind, with other sequences and no profiler, {units.time(typical_s)} (median)."
            )
    if platform == "gpu":
        yield GRAPHS
    poor = [kind for kind in kinds if not kind.attributed >= _NAMED_ENOUGH]
    if poor:
        yield (
            f"Only {units.share(poor[0].attributed)} of the device's time in {poor[0].kind} steps has the name of an "
            "operation: the profiler's events name no instruction of a program. On a GPU, leave "
            "--xla_enable_command_buffers_during_profiling out of XLA_FLAGS."
        )


def _files(profile: "Profile", folder: Path) -> dict[str, bytes]:
    """Name -> content of what goes into the run's folder."""
    from nanoserve.executors.profiling import files
    from nanoserve.report.profile import save_profile_plot

    found = {"profile.json": (json.dumps(profile.as_dict(), indent=1) + "\n").encode()}
    for kind in profile.kinds:
        picture = folder / f"{kind.kind}.png"
        save_profile_plot(str(picture), kind)
        found[picture.name] = picture.read_bytes()
    for each in files(folder):
        ending = next((ending for ending in (".xplane.pb", ".json.gz") if each.name.endswith(ending)), None)
        if ending is not None:
            found[f"trace{ending}"] = each.read_bytes()
    return found


def _text(plans: range) -> str:
    return f"{plans.start}:{plans.stop}"
