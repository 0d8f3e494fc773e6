"""Service-level objectives: how late a first token and how slow the following ones may be.

A request is good when it completed, its first token came within `ttft_s` of its scheduled arrival, and its time per
output token was at most `tpot_s`. Failures, refusals and aborts are never good. Next: `metrics`.
"""

import dataclasses
from collections.abc import Mapping

from nanoserve.specs.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slo:
    """Limits of one request, in seconds: time to first token, and time per output token after it."""

    name: str
    ttft_s: float
    tpot_s: float

    def __post_init__(self):
        for field in ("ttft_s", "tpot_s"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"Slo.{field} = {getattr(self, field)}: must be a positive number of seconds")


def _mlperf(name: str, ttft_ms: float, tpot_ms: float) -> tuple[str, Slo]:
    return name, Slo(name=name, ttft_s=ttft_ms / 1e3, tpot_s=tpot_ms / 1e3)


NAMED_SLOS: Mapping[str, Slo] = dict(
    (
        _mlperf("llama2-70b", 2000, 200),
        _mlperf("llama2-70b-interactive", 450, 40),
        _mlperf("llama3.1-405b", 6000, 175),
        _mlperf("llama3.1-8b", 2000, 100),
        _mlperf("llama3.1-8b-interactive", 500, 30),
    )
)
"""MLPerf Inference, datacenter: the p99 of TTFT and TPOT must be within these.

Source: MLPerf Inference rules, latency constraints of the datacenter server and interactive scenarios.
"""


def resolve_slo(name: str | None, ttft_s: float | None = None, tpot_s: float | None = None) -> Slo | None:
    """Turns what a config says into limits.

    Args:
      name: one of `NAMED_SLOS`, or None.
      ttft_s, tpot_s: seconds; each replaces the named value, and both together need no name.

    Returns:
      The limits, or None when nothing was asked for.

    Raises:
      ConfigError: an unknown name, or only one of two limits and no name to take the other from.
    """
    if name is None and ttft_s is None and tpot_s is None:
        return None
    if name is not None and name not in NAMED_SLOS:
        raise ConfigError(f"Slo.name = '{name}': no such objective.{nearest(name, NAMED_SLOS)}")
    base = NAMED_SLOS.get(name or "")
    ttft_s = base.ttft_s if ttft_s is None and base else ttft_s
    tpot_s = base.tpot_s if tpot_s is None and base else tpot_s
    if ttft_s is None or tpot_s is None:
        missing = "ttft_s" if ttft_s is None else "tpot_s"
        raise ConfigError(
            f"Slo.{missing} is missing: give both Slo.ttft_s and Slo.tpot_s, or a Slo.name to take it from"
        )
    changed = base is not None and (ttft_s, tpot_s) != (base.ttft_s, base.tpot_s)
    label = f"{name} (changed)" if changed else name
    return Slo(name=label or "custom", ttft_s=ttft_s, tpot_s=tpot_s)
