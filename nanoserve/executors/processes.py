"""Several processes that run one engine together, each with its own part of the mesh (`jax.distributed`).

Every process has the same config and the same trace, runs the same scheduler, and calls the same programs in the same
order: that is all that JAX asks of them. What could make them differ is what they measure, so the first process
measures for all: its clock is everybody's (`AgreedClock`), and so is its estimate of how many decode steps fit before
the next arrival (`AgreedExecutor`). Each question is one broadcast over the same links as the model's own sums, some
three of them a plan; horizons make plans few. Only the first process writes files.

Next: `experiments.run_processes`, which takes a command's flags; `engine.clock`.
"""

import contextlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from nanoserve.engine.clock import Clock
from nanoserve.engine.types import Executor, Pending, Plan
from nanoserve.roofline.counts import StepCounts
from nanoserve.specs.errors import ConfigError

_BYTES = 16  # of a number of ticks: 2**127 of them are thousands of years
_PATIENCE_S = 60  # until the last process has come


def join(coordinator: str, count: int, index: int) -> None:
    """Waits for the other processes; afterwards `jax.devices()` are those of all.

    Args:
      coordinator: host:port where the first process listens. count: of processes. index: this one's, from 0.

    Raises:
      ConfigError: they did not all come.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of no consequence where devices are not CPUs
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which ends a run in good order
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=_PATIENCE_S)
    except RuntimeError as error:
        raise ConfigError(
            f"process {index} of {count} has not met the others at {coordinator} within {_PATIENCE_S} s: start all of "
            f"them, with the same --coordinator and --processes, and --process from 0. {str(error).splitlines()[0]}"
        ) from error


def leads() -> bool:
    """Whether this is the first process, or the only one."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """The first process's value, in every process; all of them must ask, in the same order."""
    mine = np.frombuffer(value.to_bytes(_BYTES, "little", signed=True), np.uint8)
    return int.from_bytes(np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes(), "little", signed=True)


def agreeing(question: Callable[[], bool]) -> Callable[[], bool]:
    """The first process's answer to a question, in every process."""
    return lambda: bool(agreed(int(question())))


class AgreedClock:
    """Implements `engine.clock.Clock` with the first process's time."""

    def __init__(self, clock: Clock):
        """Takes over a clock of this process."""
        self._clock = clock

    def start(self) -> None:
        """Starts this process's clock."""
        self._clock.start()

    def now(self) -> int:
        """Ticks since the run began, in the first process."""
        return agreed(self._clock.now())

    def step_done(self, duration_ticks: int) -> int:
        """When the first process was done."""
        return agreed(self._clock.step_done(duration_ticks))

    def wait_until(self, ticks: int) -> None:
        """Waits by this process's clock; the next `now` is the first one's again."""
        self._clock.wait_until(ticks)

    def stopped(self) -> contextlib.AbstractContextManager[None]:
        """What is done within takes no time."""
        return self._clock.stopped()


class AgreedExecutor:
    """Implements `engine.types.Executor`: every process runs every plan, and the first one's estimates are used."""

    def __init__(self, executor: Executor):
        """Takes over an executor whose mesh spans the processes."""
        self._executor = executor

    def submit(self, plan: Plan) -> Pending:
        """Runs this process's part of a plan."""
        return self._executor.submit(plan)

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        """The first process's estimate."""
        return agreed(self._executor.steps_before(counts, span_ticks))

    def release(self, index: int) -> None:
        """Forgets a request."""
        self._executor.release(index)
