"""What tokens cost: dollars from the price of a chip's hour, and an upper bound on joules from its board power.

Energy is a bound, not an estimate: every chip is taken to draw its thermal design power all the time. A step that waits
for memory draws less, and hosts, switches and cooling, which draw more, are not in it. Where a chip's price or power is
not published, the figure is None rather than a guess.

Pure arithmetic on one replica and its rate of output tokens; replicas change neither figure.
"""

import dataclasses

from nanoserve.roofline.numeric import Number
from nanoserve.roofline.split import split_of
from nanoserve.specs.chips import ClusterSpec

_SECONDS_PER_HOUR = 3600
_MILLION = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Economy:
    """What one replica's tokens cost.

    Attributes:
      chips: of the replica. usd_per_hour: of all of them. watts_at_most: their board power.
      usd_per_million_tokens, joules_per_token_at_most: of output tokens.
    """

    chips: int
    usd_per_hour: float | None
    watts_at_most: float | None
    usd_per_million_tokens: Number | None
    joules_per_token_at_most: Number | None


def economy(cluster: ClusterSpec, output_tokens_per_s: Number) -> Economy:
    """Returns what output tokens cost.

    Args:
      cluster: chips and mesh; one replica of it is paid for.
      output_tokens_per_s: of that replica, positive; a number or an array.

    Raises:
      ConfigError: an unknown mesh axis.
    """
    chips, chip = split_of(cluster).replica_chips, cluster.chip
    usd_per_hour = None if chip.usd_per_hour is None else chips * chip.usd_per_hour
    watts = None if chip.tdp_w is None else chips * chip.tdp_w
    per_token_s = 1 / output_tokens_per_s
    return Economy(
        chips=chips,
        usd_per_hour=usd_per_hour,
        watts_at_most=watts,
        usd_per_million_tokens=(
            None if usd_per_hour is None else usd_per_hour / _SECONDS_PER_HOUR * per_token_s * _MILLION
        ),
        joules_per_token_at_most=None if watts is None else watts * per_token_s,
    )
