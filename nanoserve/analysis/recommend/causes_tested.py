"""Named causes, each tested by a replay of the config with it and without it."""

from collections.abc import Callable, Sequence

from nanoserve.analysis.failures.cause import Cause
from nanoserve.analysis.failures.counterfactual import bound, replay_finding
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.experiment import Experiment
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.types import Trace

Told = Callable[[str], None]


def replayed(
    causes: Sequence[Cause], baseline: Experiment, trace: Trace, told: Told = lambda what: None
) -> list[Finding]:
    """Tests each cause by a replay of the config with it and without it.

    Args:
      causes: to test. baseline: the config. trace: requests to replay. told: called after each cause.
    """
    findings = []
    for cause in causes:
        findings.append(_replayed(cause, baseline, trace))
        told(f"{cause.name} tested")
    return findings


def _replayed(cause: Cause, baseline: Experiment, trace: Trace) -> Finding:
    key, subject = f"causes.{cause.name}.replay", f"Replay without this: {cause.says}"
    try:
        if cause.bindings and bound(baseline, cause.bindings) == baseline:
            return not_computed(key, subject, "the baseline has not got this cause")
        return replay_finding(cause, baseline, trace)
    except ConfigError as error:
        return not_computed(key, subject, str(error))
