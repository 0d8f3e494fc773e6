"""Writes docs/h100.md, and the table of README.md, from the figures of an H100: experiments/bench/results/h100.json.

    python experiments/bench/h100_page.py            write both
    python experiments/bench/h100_page.py --check    say whether they are what the figures give

Without the file both say that nothing was measured; no figure has another source. README.md has the table between its
`h100` marks.

Next: `h100_goals` (what is wanted), `h100_table` (the tables of the parts).
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.bench import parts
from experiments.bench.h100_goals import Verdict, judged
from experiments.bench.h100_results import COUNTS, Results, resumed
from experiments.bench.h100_table import rows
from experiments.bench.results_file import Record
from nanoserve.report.markdown import escaped, table
from nanoserve.report.units import MISSING

REPOSITORY = Path(__file__).resolve().parents[2]
FIGURES = REPOSITORY / "experiments" / "bench" / "results" / "h100.json"
PAGE, README = REPOSITORY / "docs" / "h100.md", REPOSITORY / "README.md"
MARKS = re.compile(r"(<!-- h100: [^\n]* -->\n).*?(<!-- end of h100 -->)", re.DOTALL)

INTRODUCTION = """
# One H100, measured

What the operations, whole steps and a replay take on the chip that the default config names, beside the chip's
datasheet, its measured ceilings, other people's programs and the cost model. Made by

```
{command}
```
"""
COMMAND = "python experiments/bench/h100.py --out=experiments/bench/results/h100.json"
NOT_MEASURED = """
**Not measured yet: no H100 was available.** The command above makes the figures, and `python
experiments/bench/h100_page.py` this page from them. Until then every time of an H100 in this repository is a prediction
or somebody else's measurement, and says so.
"""
README_NOT_MEASURED = f"""Not measured yet: no H100 was available. `{COMMAND}` measures one; docs/h100.md says what.
"""
TOY_NOTE = "**Tiny sizes, made to show that the command works. These are no figures of the chip.**"


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_bool("check", False, "write nothing; exit code 1 if either is out of date", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    results, readme = resumed(FIGURES), README.read_text()
    wanted = {PAGE: page(results), README: with_block(readme, readme_block(results))}
    if not asked.check:
        for path, text in wanted.items():
            command.write_text("the page", path, text)
        return 0
    old = [path.name for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    print(f"{', '.join(old) or 'both'} {'not ' if old else ''}what the figures give")
    return command.EXIT_FAILED if old else 0


def page(results: Results) -> str:
    """The page.

    Args:
      results: of the benchmark; without runs where there are none.
    """
    said = results.runs[-1]["command"] if results.runs else COMMAND
    sections = [INTRODUCTION.format(command=said)]
    sections += [*_machine(results.runs)] if results.runs else [NOT_MEASURED]
    sections.append("## What is wanted of it\n\n" + goals_table(list(judged(results.parts))))
    sections += _parts(results.parts)
    sections.append(
        "## What the figures count\n\n" + "\n".join(f"- `{name}`: {text}." for name, text in COUNTS.items())
    )
    return "\n\n".join(section.strip() for section in sections) + "\n"


def goals_table(verdicts: Sequence[Verdict]) -> str:
    """Goals, one a line, with the worst figure of each."""
    headings = ("", "wanted", "worst measured", "at", "cases", "met")
    return table(headings, [_goal_cells(verdict) for verdict in verdicts])


def readme_block(results: Results) -> str:
    """The Markdown between README's marks: the goals that figures speak about, or that there are none."""
    decided = [verdict for verdict in judged(results.parts) if verdict.met is not None]
    if not decided:
        return README_NOT_MEASURED
    run = results.runs[-1]
    cells = [(escaped(v.goal.what), _worst(v), v.goal.wanted_text, _met(v)) for v in decided]
    note = f"\n{TOY_NOTE}\n" if run["toy"] else ""
    return f"{note}\n{table((escaped(run['device']), 'measured', 'wanted', 'met'), cells)}\n"


def with_block(text: str, block: str) -> str:
    """README.md with what stands between its marks replaced; as it is where it has none."""
    return MARKS.sub(lambda found: found[1] + block + found[2], text)


def _machine(runs: Sequence[Record]) -> Iterator[str]:
    """What the figures were measured on, of the last run, and how many runs there are."""
    run = runs[-1]
    if run["toy"]:
        yield TOY_NOTE
    around = run["machine"]
    lines = {
        "device": run["device"],
        **{f"GPU {name}": value for name, value in (around["gpu"] or {}).items()},
        "platform": run["platform_version"],
        "processor": f"{around['cpu']}, {around['cores']} cores",
        "system": around["system"],
        "python": around["python"],
        **run["versions"],
        "XLA_FLAGS": run["xla_flags"] or MISSING,
        "commit": run["commit"] or MISSING,
        "runs in the file": str(len(runs)),
    }
    yield table(
        ("", "of the last run"), [(escaped(name), escaped(" ".join(text.split()))) for name, text in lines.items()]
    )


def _goal_cells(verdict: Verdict) -> tuple[str, ...]:
    goal = verdict.goal
    at = verdict.worst_case or MISSING
    return escaped(goal.what), goal.wanted_text, _worst(verdict), escaped(at), str(verdict.cases), _met(verdict)


def _worst(verdict: Verdict) -> str:
    return MISSING if verdict.worst is None else verdict.goal.written(verdict.worst)


def _met(verdict: Verdict) -> str:
    if verdict.failed:
        return f"no: {', '.join(map(escaped, verdict.failed))} failed"
    return {None: "not measured", True: "yes", False: "no"}[verdict.met]


def _parts(found: Mapping[str, Mapping[str, Record]]) -> Iterator[str]:
    """A section a part that has cases."""
    for name, what in parts.PARTS.items():
        if found.get(name):
            headings, *lines = rows(name, found[name])
            cells = [[escaped(cell) for cell in line] for line in lines]
            yield f"## {name.capitalize()}: {what}\n\n{table(headings, cells)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
