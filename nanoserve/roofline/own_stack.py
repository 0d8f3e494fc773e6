"""The constants of our own stack, `nanoserve`, from what our benchmark measured: operations first, then whole steps.

Pure: records in, a file of constants out, which `experiments/calibrate.py` writes down and a benchmark uses at once to
simulate the run that it has just executed. What too little was measured of keeps the constants of the chip's usual
stack, and is named.

Next: `measured_bench` (what a record becomes), `fit`, `fit_steps`, `fit_file`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from nanoserve.roofline import constants_files
from nanoserve.roofline.calibration import Calibration, calibration_of, constants_file
from nanoserve.roofline.constants_files import OWN_STACK, ConstantsFile
from nanoserve.roofline.fit import Fit, TooFewRowsError, fit
from nanoserve.roofline.fit_file import file_on
from nanoserve.roofline.fit_steps import StepFit, fit_steps
from nanoserve.roofline.measured import Measured, MeasuredStep
from nanoserve.roofline.measured_bench import Found, ceilings, operations, steps
from nanoserve.specs.chips import ChipSpec, Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnStack:
    """What a benchmark's records say of our stack on a chip.

    Attributes:
      fits: of single operations. steps: of whole steps; None where there are too few.
      left_out: what there was too little of, in words.
      ceilings: what the chip did at best, as shares of its datasheet: no kernel of ours is expected above them.
      file: the constants, without those of its base.
    """

    fits: tuple[Fit, ...]
    steps: StepFit | None
    left_out: tuple[str, ...]
    ceilings: Mapping[str, float]
    file: ConstantsFile

    @property
    def empty(self) -> bool:
        """Whether nothing was fitted."""
        return not self.fits and self.steps is None

    def calibration(self, chip: ChipSpec, precision: Precision) -> Calibration:
        """The constants of the chip that was measured, those of the base among them."""
        return calibration_of(chip, precision, constants_files.with_base(self.file))


def calibrate(
    found: Found, chip: ChipSpec, *, source: str, command: str = "", fitted: Callable[[str], None] = lambda name: None
) -> OwnStack:
    """Fits everything that was measured on a chip.

    Args:
      found: records by part and case. chip: that they were measured on.
      source: what the records are called. command: writes the file of constants.
      fitted: told what was just fitted.
    """
    base = constants_file(chip)
    fits, left_out = _fits(operations(found, source), chip, fitted)

    def file(of_steps: StepFit | None) -> ConstantsFile:
        label = f"{OWN_STACK} on {chip.name}"
        return file_on(
            base, fits, of_steps, chip=chip.name, stack=OWN_STACK, label=label, command=command, source=source
        )

    of_steps = None
    try:
        of_steps = _steps(steps(found), chip, file(None))
        fitted("whole steps")
    except TooFewRowsError as error:
        left_out.append(str(error))
    return OwnStack(
        fits=tuple(fits),
        steps=of_steps,
        left_out=tuple(left_out),
        ceilings=ceilings(found),
        file=file(of_steps),
    )


def _fits(groups: Iterable[Measured], chip: ChipSpec, fitted: Callable[[str], None]) -> tuple[list[Fit], list[str]]:
    fits, left_out = [], []
    for group in groups:
        try:
            fits.append(fit(group, chip))
        except TooFewRowsError as error:
            left_out.append(str(error))
        fitted(f"{group.kind} {group.variant}")
    return fits, left_out


def _steps(measured: list[MeasuredStep], chip: ChipSpec, file: ConstantsFile) -> StepFit:
    """With the constants of operations in `file`."""
    whole = constants_files.with_base(file)
    return fit_steps(measured, chip, lambda precision: calibration_of(chip, precision, whole))
