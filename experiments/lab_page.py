"""Writes docs/laboratory.md: what the laboratory makes of a naive service's week and of a published conversation log.

    python experiments/run.py --config=lab_week_baseline
    python experiments/analyze.py runs/lab_week_baseline/ID --out=/tmp/week --recommend --baseline=lab_week_baseline
    python experiments/analyze.py ../shared/traces/AzureLLMInferenceTrace_conv_2023.csv --out=/tmp/conversation \
        --recommend --baseline=llama70b_h100
    python experiments/lab_page.py --week=/tmp/week --conversation=/tmp/conversation
    python experiments/lab_page.py --check

The findings of both reports are kept in docs/laboratory, the page and its pictures are made of them; without --week and
--conversation, of those that are kept. --check says whether the page is what they give.

Exit code 0: the page is written, or is what it should be. 1: it is not. 2: something the user can mend.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.analysis.finding import Finding
from nanoserve.specs.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER, PAGE = REPOSITORY / "docs" / "laboratory", REPOSITORY / "docs" / "laboratory.md"

INTRODUCTION = """
# The trace laboratory

`experiments/analyze.py` takes the logs of a service apart: what came in, how the machines were used, what failed and
why. With `--recommend` it tries configs on half of the logged time, writes the one that the requests decide for, and
replays it against the baseline on the other half, which the choice never saw. Everything is simulated, by the scheduler
that executed runs use; docs/validation.md says how wrong such runs are.

A request is *good* if it is answered within the objective, *failed* if it is not answered at all, and late otherwise. A
config is worth its good requests less its failed ones. A value of the baseline is replaced only where the difference
has an interval (95%, blocks of time resampled, paired by request) that does not hold zero, or where the worth is the
same and answers come at least 2% sooner; otherwise the page says that it was right, or that the data cannot decide.

Made by the commands at the end, of findings in `docs/laboratory`.
"""
COMMANDS = """
```sh
python experiments/run.py --config=lab_week_baseline
python experiments/analyze.py runs/lab_week_baseline/ID --out=/tmp/week --recommend --baseline=lab_week_baseline
python experiments/analyze.py ../shared/traces/AzureLLMInferenceTrace_conv_2023.csv --out=/tmp/conversation \\
    --recommend --baseline=llama70b_h100
python experiments/lab_page.py --week=/tmp/week --conversation=/tmp/conversation
```
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A log on the page.

    Attributes:
      name: of its flag and files. title, lead: of its section.
      said: keys of findings that are set whole. drawn: of those that are set as a picture.
    """

    name: str
    title: str
    lead: str
    said: tuple[str, ...]
    drawn: tuple[str, ...]


PARTS = (
    Part(
        name="week",
        title="A week of a chatbot on a naive service",
        lead="`configs/lab_week_baseline.gin`: contiguous memory for the longest answer, nobody held back when it is "
        "full, a slow scheduling interval. The four logs are what the run wrote; the analysis sees nothing else.",
        said=(
            *("anatomy.published", "usage.memory.blocks", "failures.kinds", "failures.memory.errors"),
            *(
                "causes.contiguous_allocation.replay",
                "causes.no_admission_control.replay",
                "causes.slow_interval.replay",
            ),
            *("recommend.values", "proof.outcome", "proof.failures", "proof.goodput"),
        ),
        drawn=("causes.ranking", "experiments.allocator", "experiments.interval", "proof.saturation"),
    ),
    Part(
        name="conversation",
        title="Azure's conversation log, Llama 3.1 70B on eight H100",
        lead="A published log of one hour (19,366 requests with lengths, nothing else), MLPerf's objective of Llama 2 "
        "70B, against `configs/llama70b_h100.gin`, the repository's default.",
        said=("experiments.load", "recommend.values", "proof.outcome", "proof.goodput"),
        drawn=("experiments.mesh", "experiments.chunk", "proof.saturation"),
    ),
)
"""What is on the page, in order."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    for part in PARTS:
        what = f"folder of the report for '{part.title}'; None takes the findings that are kept"
        flags.DEFINE_string(part.name, None, what, flag_values=own)
    flags.DEFINE_bool(
        "check", False, "write nothing; say whether the page is what the kept findings give", flag_values=own
    )


def _command(asked: flags.FlagValues) -> int:
    if asked.check:
        same = PAGE.read_text() == page(FOLDER)
        print(f"{PAGE.name} {'is' if same else 'is not'} what the findings in {FOLDER.name} give")
        return 0 if same else command.EXIT_FAILED
    FOLDER.mkdir(exist_ok=True)
    for part in PARTS:
        given = asked[part.name].value
        if given is not None:
            kept = {
                "findings": [each for each in _written(Path(given) / "findings.json") if _is_kept(part, each["key"])]
            }
            command.write_json(f"--{part.name}", FOLDER / f"{part.name}.json", kept)
        draw(part, findings(FOLDER / f"{part.name}.json"))
    command.write_text("--check", PAGE, page(FOLDER))
    print(f"written to {PAGE}")
    return 0


def _is_kept(part: Part, key: str) -> bool:
    return key in part.said or key in part.drawn


def _written(path: Path) -> list[dict]:
    try:
        return json.loads(path.read_text())["findings"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path}: cannot be read as findings of analyze.py ({error}). Make the report first"
        ) from error


def findings(path: Path) -> dict[str, Finding]:
    """Key -> finding, of a file that analyze.py wrote or that this command keeps.

    Raises:
      ConfigError: it cannot be read.
    """
    from nanoserve.analysis.pages.content import finding_of

    return {each["key"]: finding_of(each) for each in _written(path)}


def draw(part: Part, found: Mapping[str, Finding]) -> None:
    """Draws the pictures of a part that have what they need."""
    from nanoserve.analysis.pages.plots import drawing_of
    from nanoserve.report.theme import save

    for finding in _drawable(part, found):
        drawing = drawing_of(finding)
        if drawing is not None:
            save(str(FOLDER / _picture(part, finding)), "", functools.partial(drawing.paint, finding), drawing.height)


def _drawable(part: Part, found: Mapping[str, Finding]) -> list[Finding]:
    from nanoserve.analysis.pages.plots import drawing_of

    return [found[key] for key in part.drawn if key in found and drawing_of(found[key]) is not None]


def _picture(part: Part, finding: Finding) -> str:
    return f"{part.name}_{finding.key.replace('.', '_')}.png"


def page(folder: Path) -> str:
    """The page that the findings in a folder give.

    Raises:
      ConfigError: they cannot be read.
    """
    parts = [_section(part, findings(folder / f"{part.name}.json")) for part in PARTS]
    return "\n\n".join([INTRODUCTION.strip(), *parts, "## Made with", COMMANDS.strip()]) + "\n"


def _section(part: Part, found: Mapping[str, Finding]) -> str:
    from nanoserve.analysis.pages.markdown import finding_parts
    from nanoserve.report.markdown import escaped

    drawable = {finding.key for finding in _drawable(part, found)}
    texts = [f"## {part.title}", part.lead]
    for key in [each for each in found if _is_kept(part, each)]:
        finding = found[key]
        if finding.missing is not None:
            texts.append(f"{escaped(finding.title)}: {escaped(finding.missing)}.")
        elif key in drawable:
            texts += [
                f"**{escaped(finding.title)}**",
                f"![{escaped(finding.title)}]({FOLDER.name}/{_picture(part, finding)})",
            ]
        else:
            texts += [text.rstrip() for text in finding_parts(finding)]
    return "\n\n".join(texts)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
