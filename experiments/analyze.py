"""Takes a service's logs apart: what came in, how the machine is used, what fails, why, and what to change.

    python experiments/analyze.py runs/lab_week_baseline/0123456789ab --out=/tmp/report
    python experiments/analyze.py api.csv telemetry.csv errors.jsonl --out=/tmp/report --units=latency=ms
    python experiments/analyze.py api.csv --out=new --recommend --model=llama-3.1-8b --chip=h100_sxm --slo=llama3.1-8b
    python experiments/analyze.py trace.csv --out=new --recommend --baseline=llama70b_h100

Logs are Parquet, CSV or JSONL files, folders of them, a run's folder, or a trace of any format that run.py replays. In
the folder --out: report.html, report.md and findings.json; with --recommend also recommended.gin, which run.py runs,
and requests.parquet, the requests that it replays.

--recommend tries configs on half of the logged time and proves one on the other half, simulated. It starts from
--baseline, a config; without one, from the engine's defaults on the named model, chips and objective.

Exit code 0: the files are written. 2: something the user can mend.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from nanoserve.experiment import Experiment

REPOSITORY = Path(__file__).resolve().parents[1]
CHOOSING = ("baseline", "model", "chip", "mesh", "slo")
"""Flags that mean something with --recommend only."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return command.run(arguments, __doc__, _flags, _command, rest="log")


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "log", [], "a file or folder of logs; the name of the flag may be left out", flag_values=own
    )
    flags.DEFINE_string("out", None, "folder for the report", flag_values=own)
    flags.DEFINE_list("units", [], "units of columns whose names do not say them: latency=ms", flag_values=own)
    flags.DEFINE_list("columns", [], "columns whose names do not say what they are: prompt_tokens=ctx", flag_values=own)
    flags.DEFINE_string("time_zone", None, "in which hours are counted and bare times are meant", flag_values=own)
    flags.DEFINE_integer("block_tokens", None, "tokens of a KV block", lower_bound=1, flag_values=own)
    flags.DEFINE_bool("recommend", False, "find a better config, and prove it by replay", flag_values=own)
    flags.DEFINE_string("baseline", None, "config to start from and to compare with", flag_values=own)
    flags.DEFINE_string("model", None, "model, where the baseline does not name it", flag_values=own)
    flags.DEFINE_string("chip", None, "chip, likewise", flag_values=own)
    flags.DEFINE_list("mesh", [], "chips by axis, likewise: data=2,tensor=4", flag_values=own)
    flags.DEFINE_string("slo", None, "objective, likewise: a name of MLPerf's", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    baseline = _checked(asked)
    from experiments.analyze_files import drawing_helper, examined, opened, written

    with drawing_helper() as helper:
        joined = opened(
            asked.log,
            units=pairs("--units", asked.units),
            columns=pairs("--columns", asked.columns),
            time_zone=asked.time_zone,
            block_tokens=asked.block_tokens,
        )
        report = examined(joined, Path(asked.out), *_name(asked.log), baseline)
        if baseline is not None:
            from experiments.analyze_recommend import recommended

            report = recommended(report, baseline)
        for path in written(report, _typed(asked), helper):
            print(path)
    return 0


def _checked(asked: flags.FlagValues) -> "Experiment | None":
    """Checks what can be checked before anything is read; the baseline where a config is asked for."""
    if not asked.log:
        raise ConfigError("no logs are named. Give a file, a folder, or a run's folder; see --help")
    if not asked.out:
        raise ConfigError("--out is missing: the folder for the report")
    for name in asked.log:
        if not Path(name).exists():
            raise ConfigError(f"{name}: no such file or folder")
    pairs("--units", asked.units)
    pairs("--columns", asked.columns)
    if asked.recommend:
        return _baseline(asked)
    given = [name for name in CHOOSING if asked[name].present]
    if given:
        raise ConfigError(f"--{given[0]} means something with --recommend only. Add it, or leave --{given[0]} out")
    return None


def _baseline(asked: flags.FlagValues) -> "Experiment":
    """The config that is to be improved, with what the flags say in its place."""
    from nanoserve.experiment import CONFIG_CLASSES, resolve
    from nanoserve.specs.config import load
    from nanoserve.specs.config import resolve as resolve_config

    overrides = [f"{key}={value!r}" for key, value in _named(asked).items()]
    if asked.baseline is None:
        missing = [f"--{name}" for name in ("model", "chip", "slo") if asked[name].value is None]
        if missing:
            raise ConfigError(f"--recommend needs --baseline, or {', '.join(missing)}: what is to be configured")
        loaded = load("", CONFIG_CLASSES, "Experiment", overrides)
    else:
        path = resolve_config(asked.baseline, REPOSITORY / "configs")
        loaded = load(path, CONFIG_CLASSES, "Experiment", overrides)
    if resolve(loaded.value).slo is None:
        raise ConfigError("--slo is missing: configs are compared by the answers within an objective")
    return loaded.value


def _named(asked: flags.FlagValues) -> dict[str, object]:
    """Fields that the flags set."""
    fields = {"Experiment.model": asked.model, "Cluster.chip": asked.chip, "Slo.name": asked.slo}
    mesh = {axis: _size(size) for axis, size in pairs("--mesh", asked.mesh).items()}
    return {key: value for key, value in (fields | {"Cluster.mesh": mesh}).items() if value}


def _size(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"--mesh: '{text}' is not a number of chips. Write --mesh=data=2,tensor=4")
    return int(text)


def pairs(flag: str, entries: Sequence[str]) -> Mapping[str, str]:
    """`name=value` entries of a flag as a mapping.

    Raises:
      ConfigError: an entry that is not of this form.
    """
    for entry in entries:
        if entry.count("=") != 1 or not all(entry.split("=")):
            raise ConfigError(f"{flag}: '{entry}' is not of the form name=value")
    return dict(entry.split("=") for entry in entries)


def _name(logs: Sequence[str]) -> tuple[str, str]:
    """What the logs are called, the file or the config of the run; and the run's number, if it was one."""
    first = Path(logs[0]).resolve()
    return (first.parent.name, first.name) if (first / "logs").is_dir() else (first.stem, "")


def _typed(asked: flags.FlagValues) -> str:
    """The command as it was meant: paths by their last part, so that a report says nothing of the machine."""
    logs = [Path(log).name for log in asked.log]
    own = [f"--{name}={_text(asked[name].value)}" for name in (*CHOOSING, "units", "time_zone") if asked[name].present]
    return " ".join(["analyze.py", *logs, *(["--recommend"] if asked.recommend else []), *own])


def _text(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
