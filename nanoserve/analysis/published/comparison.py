"""Published results beside their predictions: a case or a log is replayed, and its times are laid next to the measured.

Invariants: a prediction never sees the measurement; a row on which a constant was fitted says so in `training`.
Next: `validation`, which sums up many.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nanoserve.analysis.published.capacity import Limits, highest_rate_rps
from nanoserve.analysis.published.rows import SEED, Case
from nanoserve.analysis.published.scenario import Outcome, Scenario, replay
from nanoserve.analysis.published.vllm_log import MeasuredLog
from nanoserve.roofline.calibration import Calibration, constants_for

METRICS = ("ttft", "tpot", "throughput")  # of a published row: means over requests, and output tokens per second


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A quantity, measured and predicted, in one unit."""

    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Signed and relative: 0.1 is a prediction 10% too high."""
        return self.predicted / self.measured - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One published result beside its prediction.

    Attributes:
      line: in the table of published results; 0 for a log. source, engine: who published it, and what ran.
      constants: stack whose constants priced it. chip, model, precision: names. tensor: tensor-parallel ways.
      prompt_tokens, output_tokens: nominal; 0 where they are a distribution. concurrency: users; 0 for all at once.
      training: which constant was fitted on it; empty for a held-out row. caveat: as in `rows.Case`.
      values: metric -> what was measured and predicted; seconds, or tokens per second.
    """

    line: int
    source: str
    engine: str
    constants: str
    chip: str
    model: str
    precision: str
    tensor: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    training: str
    caveat: str = ""
    values: Mapping[str, Value]


# ---- what was fitted on what ----

TRAINING_LOGS = {  # log -> constant, and how many of its first requests it was fitted on
    "RTXPRO6000_Llama-3.1-8B": ("overlap of moving and computing in matrix products", 100),
}
_TRAINING = {  # rows over 8 chips of these engines
    "vllm 0.12.0": "host gap of vLLM without asynchronous scheduling",
    "trtllm 1.0.0rc3": "host gap and fp8 products of TensorRT-LLM behind its HTTP server",
}


def training_of(case: Case) -> str:
    """Says which constant was fitted on a row; empty for a held-out one."""
    if case.source != "aiconfigurator" or case.scenario.cluster.tensor != 8:
        return ""
    return _TRAINING.get(case.row.engine, "")


# ---- replaying ----


class Replayer:
    """Predicts published rows; the search for a highest rate is made once for all rows of one system."""

    def __init__(self):
        """Knows no rate yet."""
        self._rates_rps: dict[tuple[str, str, int], float] = {}

    def predict(self, case: Case) -> dict[str, float]:
        """Replays a row, once or in a search.

        Returns:
          Metric -> prediction: mean times in seconds, and output tokens per second of the whole system.

        Raises:
          CapacityError: it does not fit in the memory that the model of memory leaves.
        """
        if case.limits is not None:
            mean_tokens = float(case.scenario.trace.output_tokens.mean())
            return {"throughput": self._rate_rps(case, case.limits) * mean_tokens * case.replicas}
        outcome = _replayed(case.scenario, case.stack)
        return {
            "ttft": float(outcome.ttft_s.mean()),
            "tpot": float(np.nanmean(outcome.tpot_s)),
            "throughput": outcome.output_tokens_per_s * case.replicas,
        }

    def _rate_rps(self, case: Case, limits: Limits) -> float:
        cluster = case.scenario.cluster
        system = (case.stack, cluster.chip.name, cluster.tensor)
        if system not in self._rates_rps:
            constants = _constants(case.scenario, case.stack)
            self._rates_rps[system] = highest_rate_rps(case.scenario, constants, limits, SEED)
        return self._rates_rps[system]


def compare_row(case: Case, predicted: Mapping[str, float]) -> Comparison:
    """Lays a prediction of `Replayer` beside what the row measured."""
    row = case.row
    values = {
        "ttft": row.ttft_s,
        "tpot": row.tpot_s,
        "throughput": None if row.derived_throughput else row.output_tokens_per_s,
    }
    return Comparison(
        line=row.line,
        source=case.source,
        engine=row.engine,
        **_names(case.scenario, case.stack),
        prompt_tokens=row.prompt_tokens or 0,
        output_tokens=row.output_tokens or 0,
        concurrency=row.concurrency or 0,
        training=training_of(case),
        caveat=case.caveat,
        values={
            metric: Value(measured=measured, predicted=predicted[metric])
            for metric, measured in values.items()
            if measured is not None
        },
    )


LOG_STATISTICS: Mapping[str, Callable[[np.ndarray], float]] = {
    "": lambda times: float(np.nanmean(times)),
    " p50": lambda times: float(np.nanpercentile(times, 50)),
    " p95": lambda times: float(np.nanpercentile(times, 95)),
}


def compare_log(log: MeasuredLog) -> list[Comparison]:
    """Replays a per-request log: its metrics are means, and with ` p50` and ` p95` the percentiles over requests.

    Returns:
      The whole log and, where a constant was fitted on its first requests, also the others by themselves.
    """
    predicted = _replayed(log.scenario, log.stack)
    constant, trained = TRAINING_LOGS.get(log.name, ("", 0))
    training = f"{constant}: the first {trained} requests" if trained else ""
    whole = _compare_requests(log, predicted, slice(None), f"log {log.name}", training)
    throughput = Value(measured=log.measured.output_tokens_per_s, predicted=predicted.output_tokens_per_s)
    whole = dataclasses.replace(whole, values={**whole.values, "throughput": throughput})
    if not trained:
        return [whole]
    return [whole, _compare_requests(log, predicted, slice(trained, None), f"log {log.name}, held-out requests", "")]


def _compare_requests(log: MeasuredLog, predicted: Outcome, part: slice, source: str, training: str) -> Comparison:
    values = {
        f"{metric}{name}": Value(
            measured=statistic(getattr(log.measured, f"{metric}_s")[part]),
            predicted=statistic(getattr(predicted, f"{metric}_s")[part]),
        )
        for metric in ("ttft", "tpot")
        for name, statistic in LOG_STATISTICS.items()
    }
    return Comparison(
        line=0,
        source=source,
        engine=log.engine,
        **_names(log.scenario, log.stack),
        prompt_tokens=0,
        output_tokens=0,
        concurrency=0,
        training=training,
        values=values,
    )


def _replayed(scenario: Scenario, stack: str) -> Outcome:
    return replay(scenario, _constants(scenario, stack))


def _constants(scenario: Scenario, stack: str) -> Calibration:
    return constants_for(scenario.cluster.chip, scenario.precision, "calibrated", stack)


def _names(scenario: Scenario, stack: str) -> dict[str, Any]:
    precision = scenario.precision
    return {
        "constants": stack,
        "chip": scenario.cluster.chip.name,
        "model": scenario.model.name,
        "precision": f"{precision.weights}, {precision.kv} KV",
        "tensor": scenario.cluster.tensor,
    }
