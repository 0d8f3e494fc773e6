"""Fits the constants of a chip and a software stack to what was measured, and writes their file and a report.

    python experiments/calibrate.py --chip=h100_sxm --from=../shared/profiles/aiconfigurator_h100
    python experiments/calibrate.py --chip=h100_sxm --from=experiments/bench/results/h100.json --stack=nanoserve

--from is a folder of tables in the aiconfigurator format, CHIP__*__SOFTWARE__NAME_perf.parquet, or, for the stack
nanoserve, a file of results of experiments/bench/h100.py (or of attention.py, which has attention alone). A third of
the shapes is held out of every fit: of tables by a hash of the shape, of our own results every third by size. What
nothing was measured of stays as it is in the file; the file of nanoserve takes it from that of the chip's usual stack.

Our own results have whole steps, too. What those take beyond their operations gives the element-wise kernels and the
host gap, and those that are held out of it say how wrong the constants are, which every summary of a run then says.

Prints a table; writes the file of constants, and with --report a page with plots. Exit code 0: written. 2: something
the user can mend.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.report.progress import Progress
from nanoserve.report.units import share, time
from nanoserve.roofline import constants_files
from nanoserve.roofline.calibration import constants_file
from nanoserve.roofline.constants_files import OWN_STACK, ConstantsFile
from nanoserve.specs import chip_registry
from nanoserve.specs.chips import ChipSpec
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from nanoserve.roofline.fit import Fit
    from nanoserve.roofline.fit_steps import StepFit
    from nanoserve.roofline.own_stack import OwnStack

LABELS = {"vllm": "vLLM", "tensorrt_llm": "TensorRT-LLM", "sglang": "SGLang", OWN_STACK: OWN_STACK}


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
    if source.is_file() and asked.stack != OWN_STACK:
        raise ConfigError(
            f"--from={source} is a file, and a file holds what our own benchmark measured: give --stack={OWN_STACK}, "
            f"or a folder of tables for --stack={asked.stack}"
        )
    line = f"python experiments/calibrate.py --chip={chip.name} --stack={asked.stack} --from={source}"
    own = calibrated(source, chip, line) if asked.stack == OWN_STACK else None
    fits = fitted(source, chip, asked.stack) if own is None else own.fits
    if not fits and (own is None or own.empty):
        print(f"no rows: {source} has nothing that was measured on a {chip.name}. Nothing is written")
        return 0
    print("\n".join([*table(fits), *(own_lines(own) if own else ())]))
    file = _file(fits, chip, asked.stack, line) if own is None else own.file
    path = Path(asked.out) if asked.out else constants_files.FOLDER / file.name
    constants_files.save(path, file)
    print(f"\nwritten to {path}")
    if asked.report:
        _report(Path(asked.report), fits, line, own)
    return 0


def calibrated(source: Path, chip: ChipSpec, line: str) -> "OwnStack":
    """Returns what a file of our own results says of a chip, showing progress.

    Raises:
      ConfigError: there is no such file, or it is not one of results.
    """
    from nanoserve.roofline.measured_bench import operations, read_found
    from nanoserve.roofline.own_stack import calibrate

    found, done = read_found(source, chip), itertools.count(1)
    with Progress(len(list(operations(found, source.name))) + 1, "fitting") as progress:
        return calibrate(
            found,
            chip,
            source=source.name,
            command=line,
            fitted=lambda name: progress.update(next(done), fitted=name),
        )


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


def own_lines(own: "OwnStack") -> list[str]:
    """What else there is to say of our own stack: what the chip can do, what was left out, and whole steps."""
    best = ", ".join(f"{name} {share(fraction)}" for name, fraction in own.ceilings.items())
    return [
        *([f"of the datasheet at best: {best}"] if best else []),
        *(f"left out: {why}" for why in own.left_out),
        *(("", *step_table(own.steps)) if own.steps else ()),
    ]


def step_table(steps: "StepFit") -> list[str]:
    """A line for each whole step: measured and predicted seconds, and whether its figures went into the constants."""
    errors = steps.test
    return [
        f"{'whole step':<36} {'measured':>10} {'predicted':>10} {'error':>7}",
        *(
            f"{line.name:<36} {time(line.measured_s):>10} {time(line.predicted_s):>10} {line.error:>+7.1%}"
            f"{'  held out' * line.held_out}"
            for line in steps.lines
        ),
        f"element-wise kernels: {_constants(steps.elementwise)}; host: {_constants(steps.host)}",
        f"held out steps: mean {errors.mean_abs:.1%}, median {errors.p50:.1%}, p90 {errors.p90:.1%} off",
    ]


def _line(fit: "Fit") -> str:
    unseen, errors = int((fit.used & fit.held_out).sum()), fit.test
    return (
        f"{fit.group.kind + ' ' + fit.group.variant:<22} {fit.used.sum():>6} {unseen:>6} "
        f"{errors.mean_abs:>6.1%} {errors.p50:>6.1%} {errors.p90:>6.1%}  {_constants(fit.constants)}"
    )


def _constants(constants: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in constants.items())


def _file(fits: "Sequence[Fit]", chip: ChipSpec, stack: str, line: str) -> ConstantsFile:
    from nanoserve.roofline.fit_file import file_of

    known = stack in constants_files.stacks(chip.name)
    before = constants_files.read(chip.name, stack) if known else constants_file(chip)
    label = before.label if known else f"{LABELS[stack]} on {chip.name}"
    return file_of(fits, chip=chip.name, stack=stack, label=label, command=line, before=before)


def _report(path: Path, fits: "Sequence[Fit]", line: str, own: "OwnStack | None") -> None:
    from experiments.calibration_page import page, plots

    command.write_text("--report", path, page(path.stem, fits, f"{line} --report={path}", own))
    for name in plots(path, fits):
        print(f"written to {name}")
    print(f"written to {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
