"""Records what the device does during some plans of a real run, with JAX's profiler.

`ProfiledRun` stands between an engine and its executor until the last plan of the range is over, then steps out of the
way. While it records, each plan runs inside an annotation with its number; the run's clock stands still while the
profiler starts and stops, so no plan pays for that, but a profiled step is slower than another: on a CPU by what noting
every operation takes, on a GPU because XLA then runs recorded graphs kernel by kernel.

Next: `profile_reading`, what becomes of it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.profiler import ProfileOptions

from nanoserve.engine.clock import Clock
from nanoserve.engine.types import Executor, Pending, Plan, StepResult

ANNOTATION = "nanoserve_plan"


class ProfiledRun:
    """An executor that is profiled during some plans."""

    def __init__(
        self,
        executor: Executor,
        plans: range,
        folder: Path,
        clock: Callable[[], Clock],
        over: Callable[[Executor], None],
    ):
        """Records nothing yet.

        Args:
          executor: who runs the plans. plans: which of them, counted from 0.
          folder: where the profiler writes. clock: the run's.
          over: told the executor once the last plan is over: to give it back its place.
        """
        self._executor, self._plans, self._folder, self._clock, self._over = executor, plans, folder, clock, over
        self._submitted = 0
        self._recording = False
        self.steps_before, self.release = executor.steps_before, executor.release

    @property
    def seen(self) -> int:
        """How many plans of the range were submitted."""
        return max(0, self._submitted - self._plans.start)

    def submit(self, plan: Plan) -> Pending:
        """Starts a plan, inside an annotation where it is one of the range."""
        number = self._submitted
        self._submitted += 1
        if number not in self._plans:
            return self._executor.submit(plan)
        if not self._recording:
            with self._clock().stopped():
                start(self._folder)
            self._recording = True
        annotation = annotated(number)
        annotation.__enter__()
        return _Profiled(self, number, annotation, self._executor.submit(plan))

    def finish(self) -> None:
        """Ends a record that the run did not come to the end of."""
        if self._recording:
            self._recording = False
            with self._clock().stopped():
                jax.profiler.stop_trace()

    def _ended(self, number: int) -> None:
        if number == self._plans[-1]:
            self.finish()
            self._over(self._executor)


@dataclasses.dataclass(frozen=True)
class _Profiled:
    """A plan of the range."""

    owner: ProfiledRun
    number: int
    annotation: contextlib.AbstractContextManager
    pending: Pending

    def result(self) -> StepResult:
        """The plan's own result; its window ends with it."""
        result = self.pending.result()
        self.annotation.__exit__(None, None, None)
        self.owner._ended(self.number)
        return result

    def ready(self) -> bool:
        """Whether the plan has run."""
        return self.pending.ready()


def start(folder: Path) -> None:
    """Starts the profiler, without its record of Python, which would slow the host by more than the host takes."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 1  # annotations, and operations of a CPU; no more
    jax.profiler.start_trace(folder, profiler_options=options)


def annotated(plan: int) -> contextlib.AbstractContextManager:
    """What makes whatever runs within the window of a plan."""
    return jax.profiler.StepTraceAnnotation(ANNOTATION, step_num=plan)


@contextlib.contextmanager
def recording(folder: Path) -> Iterator[None]:
    """The profiler is on within; what is `annotated` there is a window."""
    start(folder)
    try:
        yield
    finally:
        jax.profiler.stop_trace()


def files(folder: Path) -> list[Path]:
    """What the profiler wrote: the record, and the same for a viewer."""
    return sorted(each for each in folder.rglob("*") if each.is_file())
