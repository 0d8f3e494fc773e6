"""A figure and how sure it is: what intervals of every kind come as."""

import dataclasses

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and the interval that holds it at 95% confidence."""

    value: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.low > 0 or self.high < 0
