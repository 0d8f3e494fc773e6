"""What `run.py --processes=N` adds: N processes, on one host or many, run one engine over the devices of all of them.

Each is started with the same flags but for `--process`. All of them read the same config and trace and run the same
plans (`nanoserve.executors.processes`); the first one, where `--coordinator` listens, prints and writes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags

from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from nanoserve.replay import Replay


class One:
    """A process by itself."""

    leads = True

    def join(self, replay: "Replay") -> None:
        """There is nobody to wait for."""

    def agreeing(self, question: Callable[[], bool]) -> Callable[[], bool]:
        """Nobody else has an answer."""
        return question


class Several(One):
    """One of several processes."""

    def __init__(self, coordinator: str, count: int, index: int):
        """Waits for the others; nothing may have touched a device before.

        Raises:
          ConfigError: they did not all come.
        """
        from nanoserve.executors import processes

        processes.join(coordinator, count, index)
        self.leads = processes.leads()

    def join(self, replay: "Replay") -> None:
        """Lets the first process's clock decide when this run's plans are made.

        Raises:
          ConfigError: the run cannot be shared by processes.
        """
        from nanoserve.executors.processes import AgreedClock, AgreedExecutor

        check(replay)
        engine = replay.engine
        engine.clock, engine.executor = AgreedClock(engine.clock), AgreedExecutor(engine.executor)

    def agreeing(self, question: Callable[[], bool]) -> Callable[[], bool]:
        """The first process's answer, for all."""
        from nanoserve.executors import processes

        return processes.agreeing(question)


def check(replay: "Replay") -> None:
    """Refuses a run that processes cannot share: each sees its own devices' part of the pages only.

    Raises:
      ConfigError: says what is in the way.
    """
    experiment = replay.experiment
    if replay.jax_executor is None:
        raise ConfigError(f"--processes: one is enough for a run that is {replay.choice.line}")
    if experiment.snapshots.interval_s is not None:
        raise ConfigError("--processes: no snapshot is taken of a run of several. Leave Snapshots.interval_s out")
    if experiment.engine.preemption != "recompute":
        raise ConfigError("--processes: no pages are swapped to several hosts. Choose Engine.preemption = 'recompute'")


def define_flags(own: flags.FlagValues) -> None:
    """Defines what says which of how many processes this is."""
    flags.DEFINE_integer("processes", 1, "processes that run this together", lower_bound=1, flag_values=own)
    flags.DEFINE_integer("process", 0, "which of them this is, from 0", lower_bound=0, flag_values=own)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where all of them meet", flag_values=own)


def group_of(asked: flags.FlagValues) -> One:
    """The processes of a run, once all of them are there.

    Raises:
      ConfigError: flags that do not fit together, or processes that did not come.
    """
    if asked.processes == 1:
        return One()
    if asked.coordinator is None:
        raise ConfigError(f"--processes={asked.processes} needs --coordinator=HOST:PORT: where process 0 listens")
    if asked.process >= asked.processes:
        raise ConfigError(f"--process={asked.process}: the last of {asked.processes} is {asked.processes - 1}")
    if asked.compare_executors:
        raise ConfigError("--compare_executors times programs in one process. Leave --processes out")
    return Several(asked.coordinator, asked.processes, asked.process)
