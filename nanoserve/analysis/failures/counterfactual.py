"""The replay that tests a cause: the same requests under the same config, with the cause and without it.

Both replays are reduced to the same unit in which the cause was scored (`loss`), so that the share that it explains can
be laid beside what really goes away. Without a config there is nothing to replay, and the cause stays a reading of the
logs. Next: `analysis.recommend`, which chooses a whole config by replays.
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from nanoserve.analysis.failures.cause import Cause
from nanoserve.analysis.failures.loss import Loss
from nanoserve.analysis.finding import Finding, Value, not_computed
from nanoserve.analysis.service import SERVED, Service
from nanoserve.experiment import CONFIG_CLASSES, Experiment
from nanoserve.replay import prepare
from nanoserve.report.metrics import COMPLETED
from nanoserve.report.stats import quantiles
from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.trace.types import Trace

_FAILED = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a replay came to.

    Attributes:
      requests: replayed. lost: share of the service that is lost. failed: share of requests that failed.
      ttft_p95_s, latency_p95_s: of those that were served.
    """

    requests: int
    lost: float
    failed: float
    ttft_p95_s: float
    latency_p95_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counterfactual:
    """A cause, tested.

    Attributes:
      cause: that was tested. before: the config as it is. after: with the cause's bindings.
    """

    cause: Cause
    before: Outcome
    after: Outcome

    def finding(self) -> Finding:
        """The finding `causes.NAME.replay`."""
        before, after = self.before, self.after
        lines = ", ".join(f"{name} = {value!r}" for name, value in self.cause.bindings.items())
        return Finding(
            key=f"causes.{self.cause.name}.replay",
            title=f"Without {self.cause.name.replace('_', ' ')}: loss {before.lost:.2%} to {after.lost:.2%}, failures "
            f"{before.failed:.2%} to {after.failed:.2%}",
            rows=before.requests,
            values={
                "explained": self.cause.explained,
                "spared": before.lost - after.lost,
                "before": dataclasses.asdict(before),
                "after": dataclasses.asdict(after),
            },
            because=(
                f"Replayed with {lines}.",
                f"The logs had {self.cause.explained:.2%} down to this cause; the replay spares "
                f"{before.lost - after.lost:.2%}.",
            ),
        )


def counterfactuals(
    causes: Sequence[Cause], experiment: Experiment, trace: Trace | None = None
) -> list[Counterfactual]:
    """Replays a config as it is, and without each of some causes.

    Args:
      causes: with bindings. experiment: that has them. trace: requests; None replays those of the experiment.

    Raises:
      ConfigError: no binding can take a cause away, or the config cannot be run with it.
    """
    for cause in causes:
        if not cause.bindings:
            raise ConfigError(f"no line of a config takes the cause '{cause.name}' away: there is nothing to replay")
    as_it_is = dataclasses.replace(experiment, executor="roofline")
    changed = [bound(as_it_is, cause.bindings) for cause in causes]
    before = outcome(as_it_is, trace)
    return [
        Counterfactual(cause=cause, before=before, after=outcome(other, trace))
        for cause, other in zip(causes, changed, strict=True)
    ]


def replay_finding(cause: Cause, experiment: Experiment | None, trace: Trace | None = None) -> Finding:
    """The finding of a counterfactual, or why there is none: no config was given, or no line of it matters."""
    if experiment is None or not cause.bindings:
        why = "no config was given" if experiment is None else "no line of a config takes this cause away"
        return not_computed(f"causes.{cause.name}.replay", f"Replay without this: {cause.says}", why)
    return counterfactuals([cause], experiment, trace)[0].finding()


def bound(experiment: Experiment, bindings: Mapping[str, Value]) -> Experiment:
    """The experiment with some of its fields changed.

    Args:
      experiment: what is changed. bindings: `Class.field`, as a config has them, -> value.

    Raises:
      ConfigError: no such class or field.
    """
    by_class: dict[str, dict[str, Value]] = {}
    for name, value in bindings.items():
        owner, _, field = name.partition(".")
        by_class.setdefault(owner, {})[field] = value
    parts = {}
    for owner, fields in by_class.items():
        part = _part_of(experiment, owner)
        known = {field.name for field in dataclasses.fields(CONFIG_CLASSES[owner])}
        for field in fields.keys() - known:
            raise ConfigError(f"{owner} has no field '{field}'.{nearest(field, known)}")
        parts[part] = dataclasses.replace(getattr(experiment, part), **fields)
    return dataclasses.replace(experiment, **parts)


def _part_of(experiment: Experiment, owner: str) -> str:
    """The field of an experiment that holds the class of this name."""
    wanted = CONFIG_CLASSES.get(owner)
    for field in dataclasses.fields(experiment):
        if wanted is not None and type(getattr(experiment, field.name)) is wanted:
            return field.name
    raise ConfigError(f"a config has no class '{owner}'.{nearest(owner, CONFIG_CLASSES)}")


def outcome(experiment: Experiment, trace: Trace | None = None) -> Outcome:
    """Replays an experiment and sums it up."""
    replay = prepare(experiment, trace)
    replay.run()
    service = _service_of_records(replay.records().requests)
    loss, served = Loss(service), ~service.failed
    p95 = [float(quantiles(column[served], (0.95,))[0]) for column in (loss.ttft_s, loss.latency_s)]
    return Outcome(
        requests=service.requests.height,
        lost=loss.mean,
        failed=float(np.mean(service.failed)) if service.requests.height else 0.0,
        ttft_p95_s=p95[0],
        latency_p95_s=p95[1],
    )


def _service_of_records(requests: pl.DataFrame) -> Service:
    """What the API log of a run would say, without files in between."""
    served = pl.col("finish_reason").is_in(COMPLETED)
    columns = {
        "time_s": pl.col("arrival_s"),
        "prompt_tokens": pl.col("prompt_tokens"),
        "response_tokens": pl.col("output_tokens"),
        "status": pl.when(served).then(SERVED).otherwise(_FAILED),
        "latency_s": pl.col("finish_s") - pl.col("arrival_s"),
        "ttft_s": pl.col("first_token_s") - pl.col("arrival_s"),
        **({"replica": pl.col("replica")} if "replica" in requests.columns else {}),
    }
    table = requests.select(**columns).sort("time_s", maintain_order=True)
    return Service(start=datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC), requests=table)
