"""Where the time of some plans went, by operation, against the cost model's price of it.

A profile is windows (from the moment a plan was given to the device until its tokens were there) and events (what the
device did, when). `busy` divides every instant of a window among the events under way in it: equally where there are
several, and to a loop only where nothing inside it runs. So the parts add up to the time that the device was busy,
whatever ran beside whatever. `by_kind` adds the log's durations and the prices.

Invariant: the lines of a `KindProfile` add up to `duration_s`: operations, the gaps between them, and the host, which
is what is left of a plan's duration by the engine's clock: planning, dispatch, and taking the tokens back.

Plain numbers in, plain numbers out; who records is `executors.profiling`. Next: `operations`, the list of names.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.operations import GAP, HOST, LOOPS, OPERATIONS, OTHER
from nanoserve.roofline.timing import BoundTimes

TOP_KERNELS = 3  # of an operation, named
_NS = 1e-9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that the device did.

    Attributes:
      name: of the kernel. start_ns, end_ns: by the profiler's clock.
      op, module, program: the instruction that it is of, the program's name and number; empty where it does not say.
      scope: the JAX operation, where the profiler knows it by itself.
    """

    name: str
    start_ns: float
    end_ns: float
    op: str = ""
    module: str = ""
    program: int | None = None
    scope: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """When a plan was under way: its number in the run, and the profiler's time."""

    plan: int
    start_ns: float
    end_ns: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """What the device did in one window.

    Attributes:
      plan: its number. span_s: from the start of the first event to the end of the last.
      kernels: (operation, kernel) -> seconds.
    """

    plan: int
    span_s: float
    kernels: Mapping[tuple[str, str], float]

    @property
    def busy_s(self) -> float:
        """Seconds in which something ran."""
        return math.fsum(self.kernels.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """A plan as the run's log has it: `prefill`, `decode` or `mixed`, what it asked, and how long it took."""

    kind: str
    counts: StepCounts
    duration_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One operation: seconds of a device step, measured and priced.

    Attributes:
      operation: a key of `OPERATIONS`. measured_s: by the profile.
      calibrated_s, sol_s: by the cost model; None for what it has no such operation for.
      bound: what the calibrated price waits for most; empty where there is none, and of the host.
      kernels: those that took longest, with their seconds.
    """

    operation: str
    measured_s: float
    calibrated_s: float | None
    sol_s: float | None
    bound: str
    kernels: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """The operation, for people."""
        return OPERATIONS[self.operation].label

    @property
    def ratio(self) -> float:
        """Measured over calibrated; NaN where there is no price."""
        return self.measured_s / self.calibrated_s if self.calibrated_s else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class KindProfile:
    """Plans of one kind.

    Attributes:
      kind: prefill, decode or mixed. plans, steps: how many plans, and device steps in all of them.
      lines: every operation that was measured or priced, the longest measured first; seconds of one device step.
    """

    kind: str
    plans: int
    steps: int
    lines: tuple[Line, ...]

    @property
    def duration_s(self) -> float:
        """Seconds of a step: the sum of all lines."""
        return math.fsum(line.measured_s for line in self.lines)

    @property
    def calibrated_s(self) -> float:
        """The calibrated price of a step."""
        return math.fsum(line.calibrated_s or 0 for line in self.lines)

    @property
    def sol_s(self) -> float:
        """The price of a step at datasheet limits."""
        return math.fsum(line.sol_s or 0 for line in self.lines)

    @property
    def busy_s(self) -> float:
        """Seconds of a step in which the device did something."""
        return math.fsum(line.measured_s for line in self.lines if line.operation not in (GAP, HOST))

    @property
    def attributed(self) -> float:
        """Share of the busy time that belongs to an operation; NaN where the profile has no events."""
        other_s = math.fsum(line.measured_s for line in self.lines if line.operation == OTHER)
        return 1 - other_s / self.busy_s if self.busy_s else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """A profile of some plans of a run.

    Attributes:
      first, end: the plans, numbered from 0, `end` not among them. device: that was profiled.
      calibrated_by: the constants that plans are priced with.
      kinds: by kind of plan, in the order prefill, mixed, decode.
      remarks: what a reader has to know besides, in sentences.
    """

    first: int
    end: int
    device: str
    calibrated_by: str
    kinds: tuple[KindProfile, ...]
    remarks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, with the sums."""
        kinds = [
            dataclasses.asdict(kind)
            | {
                name: _json(getattr(kind, name))
                for name in ("duration_s", "busy_s", "calibrated_s", "sol_s", "attributed")
            }
            for kind in self.kinds
        ]
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {"seconds_are": "of one device step", "kinds": kinds}


def busy(windows: Sequence[Window], events: Sequence[Event], operation: Callable[[Event], str]) -> list[Busy]:
    """Divides the device's time in every window among operations and kernels.

    Args:
      windows: one plan after the other, none before the last is over.
      events: of one device, in any order, of any number of streams. Each is of the window in which it starts, and over
        when that is: a profiler may be late to see an end. Those that start in no window are left out.
      operation: of an event, a key of `OPERATIONS`.
    """
    within: dict[Window, list[Event]] = {window: [] for window in windows}
    for event in events:
        found = next((window for window in windows if window.start_ns <= event.start_ns < window.end_ns), None)
        if found is not None:
            within[found].append(event)
    return [_busy(window, mine, operation) for window, mine in within.items()]


def by_kind(
    plans: Sequence[Busy],
    ran: Mapping[int, Ran],
    calibrated: Callable[[StepCounts], Mapping[str, BoundTimes]],
    sol: Callable[[StepCounts], Mapping[str, BoundTimes]],
) -> tuple[KindProfile, ...]:
    """Returns the profile by kind of plan.

    Args:
      plans: what `busy` found. ran: by plan, what the log says of it.
      calibrated, sol: the prices of a plan by operation (`operations.prices`).
    """
    found = []
    for kind in ("prefill", "mixed", "decode"):
        mine = [plan for plan in plans if ran[plan.plan].kind == kind]
        if mine:
            found.append(_kind(kind, mine, [ran[plan.plan] for plan in mine], calibrated, sol))
    return tuple(found)


def _busy(window: Window, events: Sequence[Event], operation: Callable[[Event], str]) -> Busy:
    lasting = [event for event in events if event.end_ns > event.start_ns]
    if not lasting:
        return Busy(plan=window.plan, span_s=0.0, kernels={})
    turns = [(event.start_ns, True, index) for index, event in enumerate(lasting)]
    turns += [(min(event.end_ns, window.end_ns), False, index) for index, event in enumerate(lasting)]
    turns.sort()
    kernels: dict[tuple[str, str], float] = defaultdict(float)
    active: dict[int, tuple[str, str]] = {}
    before = turns[0][0]
    for now, begins, index in turns:
        working = _working(active.values())
        for key in working:
            kernels[key] += (now - before) * _NS / len(working)
        before = now
        if begins:
            active[index] = operation(lasting[index]), lasting[index].name
        else:
            del active[index]
    return Busy(plan=window.plan, span_s=(turns[-1][0] - turns[0][0]) * _NS, kernels=dict(kernels))


def _working(active: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that share an instant; a loop has only what nothing inside it has."""
    inner = [key for key in active if key[0] != LOOPS]
    return inner or list(active)


def _kind(
    kind: str,
    plans: Sequence[Busy],
    ran: Sequence[Ran],
    calibrated: Callable[[StepCounts], Mapping[str, BoundTimes]],
    sol: Callable[[StepCounts], Mapping[str, BoundTimes]],
) -> KindProfile:
    steps = sum(each.counts.steps for each in ran)
    kernels = _summed(plan.kernels for plan in plans)
    measured: dict[str, float] = defaultdict(float)
    for (operation, _), seconds in kernels.items():
        measured[operation] += seconds
    measured[GAP] += math.fsum(plan.span_s - plan.busy_s for plan in plans)
    measured[HOST] += math.fsum(each.duration_s - plan.span_s for plan, each in zip(plans, ran, strict=True))
    own, limit = (_summed(price(each.counts) for each in ran) for price in (calibrated, sol))
    lines = [
        Line(
            operation=operation,
            measured_s=measured.get(operation, 0.0) / steps,
            calibrated_s=float(own[operation].total) / steps if operation in own else None,
            sol_s=float(limit[operation].total) / steps if operation in limit else None,
            bound=_bound(own[operation]) if operation in own and operation != HOST else "",
            kernels=_longest(operation, kernels, steps),
        )
        for operation in OPERATIONS
        if measured.get(operation) or operation in own
    ]
    lines.sort(key=lambda line: -line.measured_s)
    return KindProfile(kind=kind, plans=len(plans), steps=steps, lines=tuple(lines))


def _summed[K, V](parts: Iterable[Mapping[K, V]]) -> dict[K, V]:
    total: dict[K, V] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total[key] + value if key in total else value  # type: ignore[operator]
    return total


def _bound(times: BoundTimes) -> str:
    names = [field.name for field in dataclasses.fields(BoundTimes)]
    return max(names, key=lambda name: getattr(times, name)) if times.total else ""


def _longest(operation: str, kernels: Mapping[tuple[str, str], float], steps: int) -> tuple[tuple[str, float], ...]:
    mine = [(name, seconds / steps) for (of, name), seconds in kernels.items() if of == operation]
    return tuple(sorted(mine, key=lambda each: -each[1])[:TOP_KERNELS])


def _json(number: float) -> float | None:
    return number if math.isfinite(number) else None
