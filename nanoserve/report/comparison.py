"""A real run beside its simulation: how far off is the price of a step, and what follows for requests.

Two questions, kept apart. *Steps*: every plan that ran is priced, and price and measurement are compared plan by plan;
no schedule is in between. *Run*: the trace is simulated from its first arrival to its last token, and what a user would
see is compared; here errors of steps add up or cancel, and the schedules may part.

Errors are relative and signed, simulated over real less 1. Next: `metrics`, whose tables and latencies these are.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoserve.report.metrics import Columns, request_columns, run_duration_s
from nanoserve.report.theme import DAY, KIND_COLORS, save
from nanoserve.report.units import tick, time

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
STATISTICS = {"mean": np.mean, "p50": np.median, "p95": lambda values: np.quantile(values, 0.95)}
ALL = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepError:
    """Plans of one kind: measured and priced seconds in sum, and how far a plan's price is off on average.

    Attributes:
      kind: prefill, decode, mixed, or `all`. plans: how many. measured_s, priced_s: their sums.
      error: of the sum. mean_abs_error: of a plan, unsigned, weighted by the time that it took.
    """

    kind: str
    plans: int
    measured_s: float
    priced_s: float
    error: float
    mean_abs_error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricError:
    """One number of the run, executed and simulated."""

    metric: str
    statistic: str
    real: float
    simulated: float
    error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Both answers. `total` is the run's time, first arrival to last token."""

    steps: tuple[StepError, ...]
    total: MetricError
    requests: tuple[MetricError, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def compare(steps: "pl.DataFrame", priced_s: np.ndarray, real: "pl.DataFrame", simulated: "pl.DataFrame") -> Comparison:
    """Compares a run with its simulation.

    Args:
      steps: of the real run, `records.STEP_COLUMNS`. priced_s: [plans], what each of them is priced at.
      real, simulated: `records.REQUEST_COLUMNS` of both runs.
    """
    plans = {name: steps[name].to_numpy() for name in ("kind", "duration_s")}
    return compare_columns(plans, priced_s, request_columns(real), request_columns(simulated))


def compare_columns(steps: Columns, priced_s: np.ndarray, real: Columns, simulated: Columns) -> Comparison:
    """Compares a run with its simulation.

    Args:
      steps: of the real run, `kind` and `duration_s`. priced_s: [plans], what each of them is priced at.
      real, simulated: requests of both runs, `metrics.with_latencies`.
    """
    kinds, measured_s = steps["kind"], steps["duration_s"]
    masks = [(kind, kinds == kind) for kind in KIND_COLORS] + [(ALL, np.ones(len(kinds), bool))]
    return Comparison(
        steps=tuple(_step_error(kind, measured_s[mask], priced_s[mask]) for kind, mask in masks if mask.any()),
        total=_metric("total_s", "", run_duration_s(real), run_duration_s(simulated)),
        requests=tuple(
            _metric(name, statistic, float(reduce(_some(real[name]))), float(reduce(_some(simulated[name]))))
            for name in LATENCIES
            for statistic, reduce in STATISTICS.items()
        ),
    )


def lines(comparison: Comparison) -> Iterator[str]:
    """Two tables for a person."""
    yield f"{'steps':<10}{'plans':>8}{'measured':>12}{'priced':>12}{'error':>9}{'of a plan':>11}"
    for each in comparison.steps:
        yield (
            f"  {each.kind:<8}{each.plans:>8,}{time(each.measured_s):>12}{time(each.priced_s):>12}"
            f"{each.error:>+9.1%}{each.mean_abs_error:>11.1%}"
        )
    yield f"{'run':<18}{'real':>12}{'simulated':>12}{'error':>9}"
    for each in (comparison.total, *comparison.requests):
        name = f"{each.metric.removesuffix('_s')} {each.statistic}".strip()
        yield f"  {name:<16}{time(each.real):>12}{time(each.simulated):>12}{each.error:>+9.1%}"


def save_plot(
    path: str,
    what: str,
    comparison: Comparison,
    steps: "pl.DataFrame",
    priced_s: np.ndarray,
    real: "pl.DataFrame",
    simulated: "pl.DataFrame",
) -> None:
    """Draws plans and requests, simulated against real; arguments as for `compare`.

    Raises:
      OSError: the file cannot be written. ValueError: no such kind of file.
    """
    whole = comparison.steps[-1]
    title = (
        f"{what}: simulated total time {comparison.total.error:+.1%} of the real one;\n"
        f"a plan's price is {whole.mean_abs_error:.1%} off on average"
    )
    kinds, measured_s = steps["kind"].to_numpy(), steps["duration_s"].to_numpy()
    done, twin = request_columns(real), request_columns(simulated)

    def paint(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        for kind, color in KIND_COLORS.items():
            mask = kinds == kind
            if mask.any():
                label = f"{kind} ({mask.sum():,})"
                left.plot(measured_s[mask], priced_s[mask], ".", color=DAY[color], label=label, alpha=0.7)
        _equal(left, "measured seconds of a plan", "priced")
        for name, color in zip(LATENCIES, ("orange", "blue", "teal"), strict=True):
            label = f"{name.removesuffix('_s')} ({np.isfinite(done[name]).sum():,})"
            right.plot(done[name], twin[name], ".", color=DAY[color], label=label, alpha=0.7)
        _equal(right, "real seconds of a request", "simulated")

    save(path, title, paint)


def _equal(axes: "Axes", x: str, y: str) -> None:
    """Log axes with the line on which both are equal."""
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=DAY["muted"], linewidth=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: tick(value))
    axes.legend(loc="upper left", handletextpad=0.2)


def _step_error(kind: str, measured_s: np.ndarray, priced_s: np.ndarray) -> StepError:
    measured, priced = float(measured_s.sum()), float(priced_s.sum())
    return StepError(
        kind=kind,
        plans=len(measured_s),
        measured_s=measured,
        priced_s=priced,
        error=_error(measured, priced),
        mean_abs_error=float(np.abs(priced_s - measured_s).sum()) / measured if measured else math.nan,
    )


def _metric(metric: str, statistic: str, real: float, simulated: float) -> MetricError:
    error = _error(real, simulated)
    return MetricError(metric=metric, statistic=statistic, real=real, simulated=simulated, error=error)


def _error(real: float, simulated: float) -> float:
    return simulated / real - 1 if real else math.nan


def _some(values: np.ndarray) -> Sequence[float] | np.ndarray:
    """Those that are not missing; one NaN where all are."""
    found = values[np.isfinite(values)]
    return found if len(found) else np.array([math.nan])
