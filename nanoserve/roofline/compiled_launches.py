"""What the host does while a program for a GPU runs: launches, and waits for a number that the device computed.

XLA's runtime walks a tree of thunks, which it writes down when it is asked to. A command buffer (CUDA graph) is one
launch, whatever it holds. A loop or a condition outside of one is the host's: it launches the body each time round, and
where the program does not state how often, it waits each time for the device to say whether to go on.

Next: `compiled_kernels` (what the device runs), `compiled` (the program's text).
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from nanoserve.roofline.compiled import Program, known_trips

_LINE = re.compile(r"^( *)(?:(\d+): (k\w+)|(condition|body|true_branch|false_branch|branch_\d+):)")
_ID_OF_NAME = re.compile(r'profile_annotation: "([^"]*)"\s+thunk_id: (\d+)')
_WITHIN_ANOTHER = ("kAsyncDone",)


@dataclasses.dataclass(frozen=True, slots=True)
class Thunk:
    """One thing that the runtime does. `parts` are those of a loop or a condition, by name; other thunks have none."""

    number: int
    kind: str
    parts: tuple[tuple[str, tuple["Thunk", ...]], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Launches:
    """Of one call: what the host launches, how many of that are command buffers, and how often it waits."""

    launches: float
    command_buffers: float
    waits: float

    def __add__(self, other: "Launches") -> "Launches":
        return Launches(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def times(self, number: float) -> "Launches":
        """The same, so many times over."""
        return Launches(*(number * each for each in dataclasses.astuple(self)))


NOTHING = Launches(0, 0, 0)


def launches(sequence: str, metadata: str, program: Program, assumed_trips: float) -> Launches:
    """Returns what the host does in one call.

    Args:
      sequence, metadata: the files `*.thunk_sequence*.txt` and `*.thunk_metadata.txt` of an XLA dump.
      program: the same program's text, which knows the lengths of loops.
      assumed_trips: how often a loop runs of which the program does not say it. Of a condition, the branch with the
        fewest launches is taken.
    """
    by_name = {line.name: line for lines in program.computations.values() for line in lines}
    names = {int(number): name for name, number in _ID_OF_NAME.findall(metadata)}
    known = {number: known_trips(by_name[name]) for number, name in names.items() if name in by_name}

    def of_all(thunks: Sequence[Thunk]) -> Launches:
        return sum(map(of_one, thunks), NOTHING)

    def of_one(thunk: Thunk) -> Launches:
        if thunk.kind == "kWhile":
            parts, trips = dict(thunk.parts), known.get(thunk.number)
            if trips is not None:
                return of_all(parts["body"]).times(trips)
            asked = of_all(parts["condition"]) + Launches(0, 0, 1)
            return asked.times(assumed_trips + 1) + of_all(parts["body"]).times(assumed_trips)
        if thunk.kind == "kConditional":
            branches = (of_all(part) for _, part in thunk.parts)
            return Launches(0, 0, 1) + min(branches, key=lambda each: each.launches, default=NOTHING)
        return NOTHING if thunk.kind in _WITHIN_ANOTHER else Launches(1, float(thunk.kind == "kCommandBuffer"), 0)

    return of_all(parse(sequence))


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """A thunk with its number, or the heading of a part, which has none."""

    indent: int
    number: int | None
    text: str


def parse(sequence: str) -> tuple[Thunk, ...]:
    """Reads a thunk sequence as XLA prints it, by its indentation."""
    found = filter(None, map(_LINE.match, sequence.splitlines()))
    lines = [_Line(len(each[1]), int(each[2]) if each[2] else None, each[3] or each[4]) for each in found]
    return tuple(_thunks(lines))


def _thunks(lines: Sequence[_Line]) -> Iterator[Thunk]:
    """The thunks of these lines, as deep as the first, with what is inside of each."""
    starts = [i for i, line in enumerate(lines) if line.number is not None and line.indent <= lines[0].indent]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        line = lines[start]
        parts = _parts(lines[start + 1 : end]) if line.text in ("kWhile", "kConditional") else ()
        yield Thunk(line.number or 0, line.text, tuple(parts))


def _parts(lines: Sequence[_Line]) -> Iterator[tuple[str, tuple[Thunk, ...]]]:
    """The parts of a loop or a condition.

    XLA does not indent every heading, so a heading is of this loop where the thunk after it is as deep as the first.
    """
    depth = next((line.indent for line in lines if line.number is not None), 0)
    starts = [
        i
        for i, (line, after) in enumerate(itertools.pairwise(lines))
        if line.number is None and after.number is not None and after.indent == depth
    ]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start].text, tuple(_thunks(lines[start + 1 : end]))
