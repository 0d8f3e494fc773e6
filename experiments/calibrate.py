"""Fits the constants of a chip and a software stack to measured single operations, and writes their file and a report.

    python experiments/calibrate.py --chip=h100_sxm --from=../shared/profiles/aiconfigurator_h100
    python experiments/calibrate.py --chip=h100_sxm --from=experiments/bench/results/attention.json --stack=ours

--from is a folder of tables in the aiconfigurator format, CHIP__*__SOFTWARE__NAME_perf.parquet, or a file of results of
experiments/bench/attention.py. A third of the shapes is held out of every fit, by a hash of the shape. What no table
has (element-wise kernels, host gap, memory) stays as it is in the file. Prints a table; writes the file of constants,
and with --report a page with plots. Exit code 0: written. 2: something the user can mend.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.report.progress import Progress
from nanoserve.roofline import constants_files
from nanoserve.roofline.calibration import constants_file
from nanoserve.roofline.constants_files import ConstantsFile
from nanoserve.specs import chip_registry
from nanoserve.specs.chips import ChipSpec
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from nanoserve.roofline.fit import Fit

LABELS = {"vllm": "vLLM", "tensorrt_llm": "TensorRT-LLM", "sglang": "SGLang", "ours": "nanoserve"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("chip", "h100_sxm", "name of a chip in the registry", flag_values=own)
    flags.DEFINE_string("from", None, "folder of tables, or file of benchmark results", flag_values=own)
    flags.DEFINE_string("stack", "vllm", "whose kernels were measured", flag_values=own)
    flags.DEFINE_string("out", None, "write this file instead of the one that runs read", flag_values=own)
    flags.DEFINE_string("report", None, "write a page of this name (.md), with its plots beside it", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    chip = chip_registry.chip(asked.chip)
    if not asked["from"].value:
        raise ConfigError("--from is missing: name a folder of tables, or a file of benchmark results. See --help")
    command.known("--stack", "stack", [asked.stack], LABELS)
    source = Path(asked["from"].value)
    fits = fitted(source, chip, asked.stack)
    if not fits:
        print(f"no rows: {source} has nothing that was measured on a {chip.name}. Nothing is written")
        return 0
    print("\n".join(table(fits)))
    name = constants_files.file_name(chip.name, asked.stack)
    path = Path(asked.out) if asked.out else constants_files.FOLDER / name
    line = f"python experiments/calibrate.py --chip={chip.name} --stack={asked.stack} --from={source}"
    constants_files.save(path, _file(fits, chip, asked.stack, line))
    print(f"\nwritten to {path}")
    if asked.report:
        _report(Path(asked.report), fits, line)
    return 0


def fitted(source: Path, chip: ChipSpec, stack: str) -> "list[Fit]":
    """Returns the fits of everything that a source measured on a chip with a stack."""
    from nanoserve.roofline.fit import fit
    from nanoserve.roofline.measured_tables import read

    groups, fits = read(source, chip, stack), []
    progress = Progress(len(groups), "fitting")
    for group in groups:
        fits.append(fit(group, chip))
        progress.update(len(fits), fitted=f"{group.kind} {group.variant}")
    progress.close()
    return fits


def table(fits: "Sequence[Fit]") -> list[str]:
    """A line for each fit: constants, and errors on the shapes that it has not seen."""
    head = f"{'operation':<22} {'rows':>6} {'unseen':>6} {'mean':>6} {'median':>6} {'p90':>6}  constants"
    return [head, *(_line(fit) for fit in fits)]


def _line(fit: "Fit") -> str:
    unseen, errors = int((fit.used & fit.held_out).sum()), fit.test
    constants = ", ".join(f"{name} {value:g}" for name, value in fit.constants.items())
    return (
        f"{fit.group.kind + ' ' + fit.group.variant:<22} {fit.used.sum():>6} {unseen:>6} "
        f"{errors.mean_abs:>6.1%} {errors.p50:>6.1%} {errors.p90:>6.1%}  {constants}"
    )


def _file(fits: "Sequence[Fit]", chip: ChipSpec, stack: str, line: str) -> ConstantsFile:
    from nanoserve.roofline.fit_file import file_of

    known = stack in constants_files.stacks(chip.name)
    before = constants_files.read(chip.name, stack) if known else constants_file(chip)
    label = before.label if known else f"{LABELS[stack]} on {chip.name}"
    return file_of(fits, chip=chip.name, stack=stack, label=label, command=line, before=before)


def _report(path: Path, fits: "Sequence[Fit]", line: str) -> None:
    from experiments.calibration_page import page, plots

    command.write_text("--report", path, page(path.stem, fits, f"{line} --report={path}"))
    for name in plots(path, fits):
        print(f"written to {name}")
    print(f"written to {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
