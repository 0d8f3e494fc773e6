"""Replays published serving results and a vLLM server's log through the scheduler, and says how far off the times were.

    python experiments/validate.py
    python experiments/validate.py --only='vLLM*' --out=/tmp/validation
    python experiments/validate.py --only='aiconfigurator/trtllm*/qwen3*'

Prints the errors by target, by group and by reason of what could not be replayed. A whole run writes OUT/validation.md,
and beside it in OUT/validation every row as JSON and the plots; it also writes the errors that every simulated run
prints with its results. With --only, files are written only where --out says. Exit code 0: done, whatever the errors.
2: something the user can mend.
"""

import dataclasses
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.analysis.published.comparison import Comparison, Replayer, compare_log, compare_row
from nanoserve.analysis.published.results import read_published
from nanoserve.analysis.published.rows import Case, NotReplayed, case_of
from nanoserve.analysis.published.validation import validation_entries
from nanoserve.analysis.published.vllm_log import MeasuredLog, read_vllm_log
from nanoserve.report.progress import Progress
from nanoserve.roofline.constants_files import VALIDATION
from nanoserve.specs.errors import CapacityError, ConfigError

COMMAND = "python experiments/validate.py"
REPOSITORY = Path(__file__).resolve().parents[1]
LOG = "RTXPRO6000_Llama-3.1-8B"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """A run of this command: what was compared, and what could not be, with the reason."""

    comparisons: list[Comparison]
    skipped: list[NotReplayed]


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "from",
        str(REPOSITORY.parent / "shared"),
        "folder with facts/published_throughput.csv and profiles/",
        flag_values=own,
    )
    flags.DEFINE_string(
        "only", None, "only what SOURCE/ENGINE/MODEL matches, e.g. 'MLPerf*' or 'log*'", flag_values=own
    )
    flags.DEFINE_string("out", None, "folder for the page, the rows and the plots; docs if all is run", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    folder = Path(str(asked["from"].value))
    work, skipped = _gather(folder, asked.only)
    found, replayer = Findings(comparisons=[], skipped=skipped), Replayer()
    with Progress(len(work), "replaying published results") as progress:
        for done, item in enumerate(work):
            progress.update(done, now=item.source if isinstance(item, Case) else item.name)
            _compare(item, replayer, found)
        progress.close(len(work))
    return _report(found, asked)


def _report(found: Findings, asked: flags.FlagValues) -> int:
    from experiments import validation_page as page

    print("\n".join([*page.targets_table(found.comparisons), "", *page.group_table(found.comparisons)]))
    print("\n".join(["", *page.skipped_table(found.skipped)]))
    if asked.only is None:
        command.write_json(str(VALIDATION), VALIDATION, validation_entries(found.comparisons, COMMAND))
    if asked.out or asked.only is None:
        page.write(Path(asked.out or REPOSITORY / "docs"), found.comparisons, found.skipped)
    return 0


def _gather(folder: Path, only: str | None) -> tuple[list[Case | MeasuredLog], list[NotReplayed]]:
    """Everything to replay, and what cannot be.

    Raises:
      TraceError: the data is not there. ConfigError: nothing matches.
    """
    pattern = "*" if only is None else f"{only}*"
    items: list[Case | NotReplayed | MeasuredLog] = [
        item
        for row in read_published(folder / "facts" / "published_throughput.csv")
        if fnmatch.fnmatchcase(_label(item := case_of(row)).lower(), pattern.lower())
    ]
    if fnmatch.fnmatchcase(f"log {LOG}".lower(), pattern.lower()):
        items.append(read_vllm_log(folder / "profiles" / LOG))
    if not items:
        raise ConfigError(f"--only={only}: matches no SOURCE/ENGINE/MODEL. Try 'aiconfigurator*', 'MLPerf*', 'log*'")
    return (
        [item for item in items if not isinstance(item, NotReplayed)],
        [item for item in items if isinstance(item, NotReplayed)],
    )


def _label(item: Case | NotReplayed) -> str:
    return f"{item.source}/{item.row.engine}/{item.row.model}"


def _compare(item: Case | MeasuredLog, replayer: Replayer, found: Findings) -> None:
    if isinstance(item, MeasuredLog):
        found.comparisons.extend(compare_log(item))
        return
    try:
        found.comparisons.append(compare_row(item, replayer.predict(item)))
    except CapacityError as error:
        found.skipped.append(NotReplayed(row=item.row, source=item.source, reason=f"does not fit: {error}"))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
