"""A result that is known as soon as its plan is submitted: what every simulated executor returns.

Made for every plan, so not a frozen dataclass (`engine.types` says why).
"""

import dataclasses

from nanoserve.engine.types import StepResult


@dataclasses.dataclass(slots=True)
class Known:
    """A pending result that is there."""

    value: StepResult

    def result(self) -> StepResult:
        """The result."""
        return self.value

    def ready(self) -> bool:
        """Always."""
        return True
