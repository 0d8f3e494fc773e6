"""Reads what JAX's profiler wrote, and says which operation of the model each event is of.

Two kinds of record are known: of a GPU, the streams of the first device; of a CPU, the operations of XLA's threads.
Events name the instruction that they are of, and the text of the program that ran, which is still loaded, knows the
scope of each instruction. Kernels that name no instruction are looked up by their own name.

Next: `roofline.profiled`, which divides the time, `roofline.operations`, the list of names.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jax.profiler import ProfileData

from kernels.pallas import compat
from nanoserve.executors.profiling import ANNOTATION, files
from nanoserve.roofline.calibration import Calibration, constants_for
from nanoserve.roofline.compiled import parse
from nanoserve.roofline.operations import OTHER, Named, of_scope, prices
from nanoserve.roofline.profiled import Event, KindProfile, Ran, Window, busy, by_kind
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

NOTHING = "the profiler recorded nothing of the device: on a GPU it needs CUPTI, and the right to read counters"
_SCOPE_STATS = ("tf_op", "name", "long_name")  # where profilers of other kinds of device put the JAX operation


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a profile holds: plans in order, and the events of one device."""

    windows: tuple[Window, ...]
    events: tuple[Event, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Priced:
    """What prices the plans of a profile: what ran, where, and the constants that the prices rest on."""

    model: ModelSpec
    cluster: ClusterSpec
    precision: Precision
    calibration: Calibration


def kinds_of(found: Recorded, ran: Mapping[int, Ran], priced: Priced, device: Any) -> tuple[KindProfile, ...]:
    """Returns where the time of recorded plans went, by kind of plan, beside its price.

    Args:
      found: the record. ran: by plan, what the log says of it. priced: how plans are priced.
      device: one that the plans ran on, with their programs still loaded.
    """
    price = functools.partial(prices, priced.model, priced.cluster, priced.precision)
    limits = constants_for(priced.cluster.chip, priced.precision, "sol")
    return by_kind(
        busy(found.windows, found.events, naming(found.events, programs_on(device))),
        ran,
        functools.partial(price, calibration=priced.calibration),
        functools.partial(price, calibration=limits),
    )


def read(folder: Path) -> Recorded:
    """Reads what the profiler wrote into a folder."""
    return recorded(ProfileData.from_file(str(next(f for f in files(folder) if f.name.endswith(".xplane.pb")))))


def recorded(data: Any) -> Recorded:
    """Returns the windows of a `ProfileData`, and the events of its first GPU, or of the CPU where it has none."""
    planes = list(data.planes)
    windows = sorted(
        (
            Window(int(_stats(event)["step_num"]), event.start_ns, event.end_ns)
            for plane in planes
            if plane.name.startswith("/host")
            for line in plane.lines
            for event in line.events
            if event.name == ANNOTATION
        ),
        key=lambda window: window.start_ns,
    )
    gpus = sorted((plane for plane in planes if plane.name.startswith("/device:GPU")), key=lambda plane: plane.name)
    if gpus:
        lines = [line for line in gpus[0].lines if line.name.startswith("Stream")]
        events = (_event(event) for line in lines for event in line.events)
    else:
        events = _cpu_events(event for plane in planes for line in plane.lines for event in line.events)
    return Recorded(tuple(windows), tuple(events))


Program = tuple[str, int, str]
"""A program's name, its number, and its HLO text."""


def programs_on(device: Any) -> Callable[[Collection[str]], Iterator[Program]]:
    """Returns what finds programs of these names among those that are loaded on a device."""
    return functools.partial(compat.loaded_programs, device)


def naming(
    events: Iterable[Event], programs_called: Callable[[Collection[str]], Iterable[Program]]
) -> Callable[[Event], str]:
    """Returns what says which operation an event is of, from the text of the programs that ran.

    Args:
      events: all that will be asked about. programs_called: finds programs by name, as `programs_on` does.
    """
    ops: dict[tuple[str, int | None], set[str]] = {}
    for event in events:
        if event.module:
            ops.setdefault((event.module, event.program), set()).add(event.op)
    loaded: dict[str, list[tuple[int, Named]]] = {}
    for name, number, text in programs_called({module for module, _ in ops}):
        loaded.setdefault(name, []).append((number, Named(parse(text))))
    programs = {key: _the_one(loaded.get(key[0], []), key[1], found) for key, found in ops.items()}
    anywhere = list(filter(None, programs.values()))

    def operation(event: Event) -> str:
        mine = programs.get((event.module, event.program))
        asked = anywhere if mine is None else [mine]
        found = next(filter(None, (program.operation(event.op, event.name) for program in asked)), None)
        return found or of_scope(event.scope) or OTHER

    return operation


def _the_one(programs: list[tuple[int, Named]], number: int | None, ops: set[str]) -> Named | None:
    """Of programs with one name, that which has all these instructions, and the number where several do."""

    def fits(program: tuple[int, Named]) -> tuple[int, bool]:
        return sum(op in program[1] for op in ops), program[0] == number

    return max(programs, key=fits)[1] if programs else None


def _cpu_events(events: Iterable) -> Iterator[Event]:
    """XLA's operations: each ends when its last part does, on whatever thread, of which a second event tells."""
    ops, ends = [], {}
    for event in events:
        stats = _stats(event)
        if "hlo_op" in stats:
            ops.append((event, stats))
        elif "_c" in stats:  # the consumer of what an operation produces: its end
            ends[stats["_c"]] = max(event.end_ns, ends.get(stats["_c"], 0.0))
    for event, stats in ops:
        yield _event(event, end_ns=max(event.end_ns, ends.get(stats.get("_p"), 0.0)))


def _event(event, end_ns: float | None = None) -> Event:
    stats = _stats(event)
    program = stats.get("program_id")
    return Event(
        name=event.name,
        start_ns=event.start_ns,
        end_ns=event.end_ns if end_ns is None else end_ns,
        op=str(stats.get("hlo_op", "")),
        module=str(stats.get("hlo_module", "")),
        program=None if program is None else int(program),
        scope=next((str(stats[name]) for name in _SCOPE_STATS if "/" in str(stats.get(name, ""))), ""),
    )


def _stats(event) -> dict:
    return dict(event.stats)
