"""The figures of the H100 benchmark as lines for people: a table a part, in the words of the part itself.

Next: `parts`, whose `columns` say what stands in a line.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from experiments.bench import parts
from experiments.bench.results_file import MEASURED, Record


def tables(found: Mapping[str, Mapping[str, Record]]) -> Iterator[str]:
    """The lines of every part that has cases, in the order of the parts.

    Args:
      found: records by part and case; parts that cannot be loaded here are named, and their figures stay in the file.
    """
    for name in parts.PARTS:
        if found.get(name):
            took_s = sum(record.get("took_s", 0.0) for record in found[name].values())
            yield f"{name}: {parts.PARTS[name]} ({len(found[name])} cases, {took_s:.0f} s)"
            try:
                yield from (f"  {line}" for line in aligned(rows(name, found[name])))
            except ImportError as error:
                yield f"  {len(found[name])} cases, which cannot be shown here: {error}"
            yield ""


def rows(part: str, cases: Mapping[str, Record]) -> list[tuple[str, ...]]:
    """The cells of a part's table, its headings first; a case that was not measured has its reason at its end."""
    columns = parts.load(part).columns
    cells = {name: columns(record) for name, record in cases.items() if record["status"] == MEASURED}
    headings = tuple(dict.fromkeys(heading for of_case in cells.values() for heading in of_case))
    lines = [("case", *headings, "")]
    for name, record in cases.items():
        of_case = cells.get(name, {})
        why = "" if name in cells else f"{record['status']}: {record['reason']}"
        lines.append((name, *(of_case.get(heading, "") for heading in headings), why))
    return lines


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of cells as text: names and reasons to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ("<", *(">",) * (len(widths) - 2), "<")
    for line in lines:
        yield "  ".join(_padded(line, sides, widths)).rstrip()


def _padded(line: Sequence[str], sides: Iterable[str], widths: Iterable[int]) -> Iterator[str]:
    for cell, side, width in zip(line, sides, widths, strict=True):
        yield f"{cell:{side}{width}}"
